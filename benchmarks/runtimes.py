"""Whether runtimes answer alike: the same file and clips in each of those that are installed.

    python -m benchmarks.runtimes --checkpoint best.pt --data ../shared/data/k400tiny_images \\
        [--python openvino/bin/python ...] [--node_modules node_modules]

Runtimes are looked for in this environment and in those of the interpreters that `--python` names
(ONNX Runtime, OpenVINO, OpenCV), and below `node_modules` (onnxruntime-node). Compared with ONNX
Runtime here: how often the likeliest class is the same, and the largest difference of a
probability. Written to `benchmarks/results/`, in a file named by the processor.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
import onnx

from benchmarks.common import markdown, write_result
from benchmarks.runtime_side import RUNTIMES
from k400tiny_lib.config import Config
from k400tiny_lib.export.exporter import describe_model
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import LoadedModel, load_model
from k400tiny_lib.serving.predict import read_clip
from k400tiny_lib.system import cpu_name

Clips = Sequence[npt.NDArray[np.uint8]]
Answers = npt.NDArray[np.float32]
SIDE = Path(__file__).with_name("runtime_side.py")
NODE_SIDE = SIDE.with_suffix(".cjs")
_MODULES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "opencv": "cv2"}
_SIZES = ((240, 320), (1080, 1920), (129, 257), (48, 36), (16, 1600))  # of noise


def export_float32(loaded: LoadedModel, opset: int = 18) -> onnx.ModelProto:
    """The float32 graph as export_onnx makes it."""
    optimize = ARCHITECTURES[loaded.architecture].optimize_for_export
    model = optimize(loaded.model) if optimize else loaded.model
    module = FramesToProbabilities(model, loaded.geometry).eval()
    return export_graph(module, opset, describe_model(loaded))


def answer(runtime: str, python: str, model: Path, clips: Clips) -> tuple[str, Answers] | None:
    """Version and probabilities (N, K) of a runtime in an environment; None if it is not there."""
    found = f"import importlib.util as u, sys; sys.exit(u.find_spec({_MODULES[runtime]!r}) is None)"
    if subprocess.run([python, "-c", found], check=False).returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        stored, answers = Path(folder, "clips.npz"), Path(folder, "answers.npy")
        np.savez(stored, *clips)
        command = [python, str(SIDE), runtime, str(model), str(stored), str(answers)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{runtime} failed: {done.stderr}")
        # OpenVINO adds its build to the version.
        return done.stdout.strip().splitlines()[-1].partition("-")[0], np.load(answers)


def answer_in_node(modules: Path, model: Path, clips: Clips) -> tuple[str, Answers]:
    """Version and probabilities (N, K) of onnxruntime-node below a node_modules folder."""
    with tempfile.TemporaryDirectory() as folder:
        index = []
        for number, clip in enumerate(clips):
            file = Path(folder, str(number))
            file.write_bytes(clip.tobytes())
            index.append({"file": str(file), "shape": [1, *clip.shape]})
        stored, answers = Path(folder, "clips.json"), Path(folder, "answers.json")
        stored.write_text(json.dumps(index))
        command = ["node", str(NODE_SIDE), str(model), str(stored), str(answers)]
        environment = os.environ | {"NODE_PATH": str(modules.resolve())}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"onnxruntime-node failed: {done.stderr}")
        return done.stdout.strip(), np.array(json.loads(answers.read_text()), np.float32)


def compare(answers: Answers, expected: Answers) -> tuple[float, float]:
    """Per cent of clips with the same likeliest class, and the largest difference."""
    same = 100 * float((answers.argmax(1) == expected.argmax(1)).mean())
    return same, float(np.abs(answers - expected).max())


def report(loaded: LoadedModel, data: Path, pythons: Sequence[str], node: Path) -> str:
    """Run every runtime; returns the text about it."""
    folders = sorted(path for path in data.iterdir() if path.is_dir())
    clip_len = loaded.geometry.clip_len
    clips = [read_clip(path, clip_len).frames for path in folders]
    rng = np.random.default_rng(0)
    others = [rng.integers(0, 256, (clip_len, *size, 3), np.uint8) for size in _SIZES]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        onnx.save(export_float32(loaded), model)
        here = answer("onnxruntime", sys.executable, model, [*clips, *others])
        assert here is not None
        for runtime in RUNTIMES:
            for python in (sys.executable, *pythons):
                if answered := answer(runtime, python, model, [*clips, *others]):
                    rows.append((runtime, *answered))
        if node.is_dir():
            rows.append(("onnxruntime-node", *answer_in_node(node, model, [*clips, *others])))
    table = []
    for runtime, version, answers in sorted(rows, key=lambda row: row[:2]):
        same, difference = compare(answers[: len(clips)], here[1][: len(clips)])
        _, of_others = compare(answers[len(clips) :], here[1][len(clips) :])
        cells = (f"{same:.0f}", f"{difference:.1e}", f"{of_others:.1e}")
        table.append((runtime, version, *cells))
    sizes = ", ".join(f"{height}x{width}" for height, width in _SIZES)
    certain = float(np.median(here[1][: len(clips)].max(1)))
    return "\n\n".join(
        [
            "# The same file in other runtimes",
            f"{cpu_name()}. {loaded.architecture}, {len(loaded.class_names)} classes, opset 18, "
            f"float32, compared with ONNX Runtime {here[0]} on {len(clips)} clips of JPEG frames "
            f"(median of the largest probability {certain:.2f}) and on noise of {sizes} px. "
            "OpenVINO with `INFERENCE_PRECISION_HINT` f32.",
            markdown(
                (
                    "runtime",
                    "version",
                    "same top-1 %",
                    "largest difference of a probability",
                    "on noise of other sizes",
                ),
                table,
            ),
        ]
    )


@click.command()
@click.option("--checkpoint", required=True, help="best.pt of the model.")
@click.option("--data", required=True, type=Path, help="Directory of frame folders.")
@click.option("--python", multiple=True, help="Interpreters of environments with more runtimes.")
@click.option("--node_modules", type=Path, default=Path("node_modules"), help="For Node.js.")
def main(checkpoint: str, data: Path, python: tuple[str, ...], node_modules: Path) -> None:
    """Compare, print and write the table."""
    text = report(load_model(Config(checkpoint=checkpoint)), data, python, node_modules)
    write_result("runtimes", cpu_name(), text)


if __name__ == "__main__":
    main()
