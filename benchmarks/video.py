"""Decoding videos to clips against the bare decoder, and `predict` on large frames.

    python -m benchmarks.video [--rounds 5] [--lengths 50 300]

Videos of 336 px, 1080p and 4K are made here, with H.264 where PyAV has an encoder. The bare decoder
is PyAV, which decodes the same frames from start to end and converts those of the clip to RGB at
their full size; ours also reads the packets, checks that the file is whole, and scales. The sides
take turns in one process. Memory is the peak of a process that does nothing else, several times.
"""

import argparse
import functools
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
import pandas as pd

from benchmarks.common import Headline, in_turns, markdown, write_result
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.media.video import sample_video
from k400tiny_lib.serving.onnx_classifier import open_classifier
from k400tiny_lib.serving.predict import label_inputs
from k400tiny_lib.system import available_cores, cpu_name

SIZES = {"336 px": (336, 336), "1080p": (1080, 1920), "4K": (2160, 3840)}
NUM_FRAMES = 40  # of a clip that prepare_data makes


def codec() -> str:
    """H.264 where PyAV was built with its encoder."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_video(path: Path, size: tuple[int, int], num_frames: int) -> None:
    """A soft picture that slides, with some noise, at 30 frames a second."""
    height, width = size
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 8 + 64, width // 8 + 64, 3), dtype=np.uint8)
    picture = cv2.resize(small, None, fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    picture = picture // 2 + rng.integers(0, 12, picture.shape, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec(), rate=30, options={"preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            left = number % 256
            frame = np.ascontiguousarray(picture[left : left + height, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))


def decode_bare(path: Path, num_frames: int) -> None:
    """Decode everything; of the frames of the clip, make RGB."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = set(uniform_indices(stream.frames, num_frames).tolist()) if num_frames else {}
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                frame.to_ndarray(format="rgb24")


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def core_seconds(call: Callable[[], object]) -> float:
    """Seconds that a call keeps cores busy."""
    start = time.process_time()
    call()
    return time.process_time() - start


def export_model(path: Path) -> None:
    """An R(2+1)D-18 of random weights, as export_onnx writes it."""
    import onnx

    from benchmarks.inference import CLASSES, GEOMETRY
    from k400tiny_lib.export.exporter import describe_model
    from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
    from k400tiny_lib.models.architectures import ARCHITECTURES
    from k400tiny_lib.models.loaded import LoadedModel
    from k400tiny_lib.models.weights import build_model

    model = build_model("r2plus1d_18", CLASSES).eval()
    names = [str(number) for number in range(CLASSES)]
    loaded = LoadedModel(model, "r2plus1d_18", GEOMETRY, names, "random weights")
    optimize = ARCHITECTURES["r2plus1d_18"].optimize_for_export
    module = FramesToProbabilities(optimize(model) if optimize else model, GEOMETRY).eval()
    onnx.save(export_graph(module, 18, describe_model(loaded)), path)


def measure(what: str, path: Path, model: Path, rounds: int) -> dict[str, float]:
    """Do one thing in this process: median of its seconds, and the peak of memory in MB."""
    call: Callable[[], object]
    if what == "bare":
        call = functools.partial(decode_bare, path, NUM_FRAMES)
    elif what == "ours":
        call = functools.partial(sample_video, path, NUM_FRAMES)
    elif what == "predict":
        call = functools.partial(label_inputs, open_classifier(model), [path], 1, 5)
    else:
        call = functools.partial(_served(model).predict, None, pd.DataFrame({"path": [path.name]}))
    took = [seconds(call) for _ in range(rounds + 1)][1:]
    status = Path("/proc/self/status").read_text()  # getrusage counts what this process came from
    peak = next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line)
    return {"seconds": median(took), "peak_mb": peak / 1000}


def _served(model: Path) -> Any:
    from mlflow.pyfunc.model import PythonModelContext

    from k400tiny_lib.serving.video_classifier import VideoClassifier

    classifier = VideoClassifier()
    config = {"video_root": str(model.parent)}
    classifier.load_context(PythonModelContext({"onnx": str(model)}, config))
    return classifier


def _in_own_process(what: str, path: Path, model: Path, rounds: int) -> dict[str, float]:
    arguments = ["--measure", what, str(path), str(model), "--rounds", str(rounds)]
    command = [sys.executable, "-m", "benchmarks.video", *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(output.splitlines()[-1])
    return measured


def decoding_rows(videos: dict[str, Path], model: Path, rounds: int) -> list[list[str]]:
    """Frames a second of both sides, their ratio, and the peaks of memory."""
    rows = []
    for name, path in videos.items():
        calls: dict[str, Callable[[], object]] = {
            "decode": functools.partial(decode_bare, path, 0),
            "bare": functools.partial(decode_bare, path, NUM_FRAMES),
            "ours": functools.partial(sample_video, path, NUM_FRAMES),
        }
        sides: dict[str, Callable[[], float]] = {
            side: functools.partial(core_seconds, call) for side, call in calls.items()
        }
        took = in_turns(sides, rounds)
        peaks = [_in_own_process(what, path, model, 1)["peak_mb"] for what in ("bare", "ours")]
        milliseconds = [f"{1000 * took[side]:.0f}" for side in ("decode", "bare", "ours")]
        ratio = [f"{took[side] / took['ours']:.2f}" for side in ("decode", "bare")]
        rows.append([name, *milliseconds, *ratio, *(f"{peak:.0f}" for peak in peaks)])
        print(*rows[-1], flush=True)
    return rows


def label_rows(videos: dict[str, Path], model: Path, rounds: int) -> list[list[str]]:
    """Seconds to the labels of one video, and the peaks of memory."""
    rows = []
    for name, path in videos.items():
        decoding = _in_own_process("ours", path, model, rounds)
        row = [name, f"{decoding['seconds']:.2f}"]
        for what in ("predict", "served"):
            measured = _in_own_process(what, path, model, rounds)
            row += [f"{measured['seconds']:.2f}", f"{measured['peak_mb']:.0f}"]
        rows.append(row)
        print(*row, flush=True)
    return rows


def run(lengths: Sequence[int], rounds: int, directory: Path) -> tuple[str, list[Headline]]:
    """Measure everything; returns the tables as markdown and the headlines."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        model = Path(folder, "model.onnx")
        export_model(model)
        videos: dict[str, Path] = {}
        for size in SIZES:
            for length in lengths:
                path = videos[f"{size}, {length} frames"] = Path(folder, f"{len(videos)}.mp4")
                write_video(path, SIZES[size], length)
        decoding = decoding_rows(videos, model, rounds)
        short = {name: path for name, path in videos.items() if f", {lengths[0]} " in name}
        labels = label_rows(short, model, rounds)
    versions = f"Python {platform.python_version()}, PyAV {av.__version__}, {codec()}"
    headlines = [
        Headline(f"decoding a video, {name}", f"{ours} ms", f"PyAV, all frames: {decode} ms", ratio)
        for name, decode, _, ours, ratio, *_ in decoding
    ]
    text = "\n".join(
        [
            f"# Decoding videos on {cpu_name()}",
            "",
            f"{available_cores()} cores, {versions}, medians of {rounds} rounds. Decode: PyAV "
            f"decodes all frames. Bare: it also makes RGB of {NUM_FRAMES} of them at full size. "
            f"Ours: `sample_video`, {NUM_FRAMES} frames of 336 px. Seconds of both cores together "
            "(`process_time`), which other work on the machine does not change.",
            "",
            markdown(
                [
                    *("video", "decode, ms", "bare, ms", "ours, ms", "decode / ours"),
                    *("bare / ours", "bare, peak MB", "ours, peak MB"),
                ],
                decoding,
            ),
            "",
            f"One video to labels, R(2+1)D-18 in float32. Decoding is that of {NUM_FRAMES} frames.",
            "",
            markdown(
                [
                    *("video", "decoding, s", "`predict`, s", "`predict`, peak MB"),
                    *("served model, s", "served model, peak MB"),
                ],
                labels,
            ),
        ]
    )
    return text, headlines


def main() -> None:
    """Read the command line, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 300])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, path, model = arguments.measure
        print(json.dumps(measure(what, Path(path), Path(model), arguments.rounds)))
        return
    found = run(arguments.lengths, arguments.rounds, arguments.directory)
    write_result("video", cpu_name(), *found)


if __name__ == "__main__":
    main()
