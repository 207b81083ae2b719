"""Whether a change of the exported graph pays: graphs of two checkouts, in turns in one process.

    python -m benchmarks.graphs --before ../checkout-of-before

R(2+1)D-18 with random weights, 16 frames of 112 px, one clip at a time from frames of three sizes.
Medians of rounds in turns are printed and written to `benchmarks/results/`.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from benchmarks.common import Headline, in_turns, markdown, write_result
from k400tiny_lib.export.parity import open_session
from k400tiny_lib.system import available_cores, cpu_name

SIZES = {"336x336": (336, 336), "1080x1920": (1080, 1920), "2160x3840": (2160, 3840)}
ROOT = Path(__file__).resolve().parents[1]
EXPORT = """
import sys
import onnx, torch
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import build_model
torch.manual_seed(0)
model = ARCHITECTURES["r2plus1d_18"].optimize_for_export(build_model("r2plus1d_18", 400).eval())
module = FramesToProbabilities(model, Geometry(16, (128,), 112)).eval()
metadata = {"class_names": list(map(str, range(400))), "clip_len": 16}
onnx.save(export_graph(module, 18, metadata), sys.argv[1])
"""


def export_from(checkout: Path, path: Path) -> onnxruntime.InferenceSession:
    """Export with the code of a checkout, and open the graph."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, "-c", EXPORT, str(path)]
    subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)
    return open_session(onnx.load(path))


def milliseconds(session: onnxruntime.InferenceSession, frames: npt.NDArray[np.uint8]) -> float:
    """Milliseconds from frames to probabilities."""
    start = time.perf_counter()
    session.run(None, {"frames": frames})
    return 1000 * (time.perf_counter() - start)


def report(before: Path, rounds: int) -> tuple[str, list[Headline]]:
    """Export and time both; returns the text about it and the headlines."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            "before": export_from(before, Path(folder, "before.onnx")),
            "after": export_from(ROOT, Path(folder, "after.onnx")),
        }
    rows, headlines = [], []
    for name, size in SIZES.items():
        shape = (1, 16, *size, 3)
        frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

        sides: dict[str, Callable[[], float]] = {
            key: partial(milliseconds, session, frames) for key, session in sessions.items()
        }
        ms = in_turns(sides, rounds)
        ratio = f"{ms['before'] / ms['after']:.2f}"
        rows.append((name, f"{ms['before']:.0f}", f"{ms['after']:.0f}", ratio))
        headlines.append(
            Headline(
                f"exported graph, frames of {name}",
                f"{ms['after']:.0f} ms",
                f"the graph before: {ms['before']:.0f} ms",
                ratio,
            )
        )
    text = "\n\n".join(
        [
            "# The exported graph before and after",
            f"{cpu_name()}, {available_cores()} cores, load average {os.getloadavg()[0]:.1f} at "
            f"the end; ONNX Runtime {version('onnxruntime')}. R(2+1)D-18, one clip of 16 frames, "
            f"from frames to probabilities. Medians of {rounds} rounds in turns.",
            markdown(("frames", "before, ms", "after, ms", "times as fast"), rows),
        ]
    )
    return text, headlines


@click.command()
@click.option("--before", required=True, type=Path, help="A checkout of the code to compare with.")
@click.option("--rounds", default=9, help="Rounds, of which medians are taken.")
def main(before: Path, rounds: int) -> None:
    """Measure, print and write the table."""
    write_result("graphs", cpu_name(), *report(before, rounds))


if __name__ == "__main__":
    main()
