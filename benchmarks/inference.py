"""How fast labels come: the eager torchvision model against the exported one, and its int8 variant.

    python -m benchmarks.inference --data ../shared/data/k400tiny_images \\
        [--checkpoint best.pt --labeled_data frames --gt_csv labels.csv]

From folders of JPEG frames to labels, all sides on the same clips in one run, in turns; then the
time from the start of a process to its first label, and the model alone in OpenVINO and
torch.compile where they can be used. With a checkpoint, what int8 costs in accuracy
on labeled clips that training did not see, with the checkpoint's own clip geometry. Medians are
printed and written to `benchmarks/results/`, in a file named by the processor.

The committed table has the best.pt of `mlflow run . -e main` and the clips of
`k400tiny_lib.data.sources.rendered.render_sample(folder, seed=4242, num_sources_per_class=32)`.
"""

import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import cv2
import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from benchmarks.common import Headline, in_turns, markdown, write_result
from benchmarks.compilers import compilers_report
from benchmarks.data_loading import PlainClips
from benchmarks.process_start import start_rows
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.export.exporter import describe_model
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.export.variants import make_variant
from k400tiny_lib.media.frames import frame_files
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry, LoadedModel, load_model
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.serving.onnx_classifier import open_classifier
from k400tiny_lib.serving.predict import label_inputs, read_clip
from k400tiny_lib.system import available_cores, cpu_name

CLASSES, GEOMETRY = 400, Geometry(16, (128,), 112)
BATCHES = (1, 4)
CALIBRATION_CLIPS = 16


class PlainModel:
    """The reference, written plainly: decode every frame with OpenCV, transform, run PyTorch."""

    def __init__(self, model: nn.Module, folders: Sequence[Path]) -> None:
        self.model = model
        clips = [Clip(path.name, (0, len(frame_files(path)) - 1), 0, path.name) for path in folders]
        self.clips = PlainClips(clips, folders[0].parent)

    @torch.inference_mode()
    def label(self, batch_size: int) -> list[int]:
        """The likeliest class of every clip."""
        classes: list[int] = []
        for start in range(0, len(self.clips), batch_size):
            positions = range(start, min(start + batch_size, len(self.clips)))
            batch = torch.stack([self.clips[position] for position in positions])
            classes += self.model(batch).softmax(1).argmax(1).tolist()
        return classes


def milliseconds(call: Callable[[], object], count: int) -> float:
    """Milliseconds per clip of a call that labels `count` clips."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start) / count


def export_both(loaded: LoadedModel, folders: Sequence[Path]) -> dict[str, onnx.ModelProto]:
    """The graphs as export_onnx makes them: float32, and int8 calibrated on these clips."""
    models = {"float32": loaded.model, "plain": loaded.model}
    if optimize := ARCHITECTURES[loaded.architecture].optimize_for_export:
        models["float32"] = optimize(loaded.model)
    protos = {
        name: export_graph(
            FramesToProbabilities(model, loaded.geometry).eval(), 18, describe_model(loaded)
        )
        for name, model in models.items()
    }
    clip_len = loaded.geometry.clip_len
    clips = [torch.from_numpy(read_clip(path, clip_len).frames) for path in folders]
    return {"float32": protos["float32"], "int8": make_variant("int8", protos["plain"], clips)}


def accuracy_rows(
    loaded: LoadedModel, folders: Sequence[Path], labels: dict[str, str]
) -> list[tuple[str, str, str, str]]:
    """Top-1 accuracy of a model in float32 and int8, and how often both predict the same class."""
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        for proto in export_both(loaded, folders[:CALIBRATION_CLIPS]).values():
            file = Path(folder, "model.onnx")
            onnx.save(proto, file)
            scored = folders[CALIBRATION_CLIPS:]
            tables.append(label_inputs(open_classifier(file), scored, 4, 1)[0])
    rows = []
    for name, table in zip(("float32", "int8"), tables, strict=True):
        right = 100 * (table["label"] == table["input"].map(labels)).mean()
        same = 100 * (table["label"] == tables[0]["label"]).mean()
        moved = np.abs(table["probability"] - tables[0]["probability"]).max()
        rows.append((name, f"{right:.2f}", f"{same:.2f}", f"{moved:.3f}"))
    return rows


def in_words(geometry: Geometry) -> str:
    """Frames and pixels of a trained model."""
    [short_side] = geometry.resize
    return f"{geometry.clip_len} frames, short side {short_side}, crop {geometry.crop_size}"


def report(data: Path, clips: int, rounds: int) -> tuple[str, list[Headline]]:
    """Measure the speed; returns the text about it and the headlines."""
    folders = sorted(path for path in data.iterdir() if path.is_dir())
    timed = folders[:clips]
    torch.manual_seed(0)
    model = build_model("r2plus1d_18", CLASSES).eval()
    names = [str(number) for number in range(CLASSES)]
    loaded = LoadedModel(model, "r2plus1d_18", GEOMETRY, names, "random weights")
    reference = PlainModel(model, timed)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, proto in export_both(loaded, folders[:CALIBRATION_CLIPS]).items():
            files[name] = Path(folder, f"{name}.onnx")
            onnx.save(proto, files[name])
        ours = {name: open_classifier(path) for name, path in files.items()}

        def label(name: str, batch: int) -> Callable[[], float]:
            if name == "reference":
                return lambda: milliseconds(lambda: reference.label(batch), len(timed))
            model = ours[name]
            return lambda: milliseconds(lambda: label_inputs(model, timed, batch, 1), len(timed))

        names_of = ("reference", *files)
        sides = {f"{name}, batch {b}": label(name, b) for b in BATCHES for name in names_of}
        times = in_turns(sides, rounds)
        starts = start_rows(files["float32"], timed[0], rounds)
        compilers = compilers_report(files, loaded, timed[0], rounds)
        sizes = {name: path.stat().st_size / 1e6 for name, path in files.items()}
    headlines = [
        Headline(
            f"labeling frame folders, {name}",
            f"{1000 / times[f'{name}, batch 1']:.2f} clips/s",
            f"all frames decoded, PyTorch: {1000 / times['reference, batch 1']:.2f} clips/s",
            f"{times['reference, batch 1'] / times[f'{name}, batch 1']:.2f}",
        )
        for name in files
    ]
    rows = []
    for batch in BATCHES:
        plain, float32 = (times[f"{name}, batch {batch}"] for name in ("reference", "float32"))
        for name in names_of:
            ms = times[f"{name}, batch {batch}"]
            of_float32 = f"{float32 / ms:.2f}" if name == "int8" else ""
            size = f"{sizes[name]:.0f}" if name in sizes else ""
            rows.append(
                (
                    str(batch),
                    name,
                    f"{ms:.0f}",
                    f"{1000 / ms:.2f}",
                    f"{plain / ms:.2f}",
                    of_float32,
                    size,
                )
            )
    text = "\n\n".join(
        [
            "# From JPEG folder to label",
            f"{cpu_name()}, {available_cores()} cores, load average {os.getloadavg()[0]:.1f} at "
            f"the end; Python {platform.python_version()}, PyTorch {torch.__version__}, ONNX "
            f"Runtime {version('onnxruntime')}, OpenCV {cv2.__version__}. R(2+1)D-18, random "
            f"weights, {len(names)} classes, {in_words(GEOMETRY)}; "
            f"{len(timed)} clips of {len(frame_files(timed[0]))} JPEG frames a round. Medians of "
            f"{rounds} rounds in turns.",
            "## Labeling",
            "The reference decodes every frame with OpenCV and runs PyTorch; ours is what "
            "`predict` does, which decodes the frames that it needs while the model computes.",
            markdown(("batch", "", "ms a clip", "clips/s", "x reference", "x float32", "MB"), rows),
            "## From the start of a process to the first label (files in the page cache)",
            markdown(("", "s", "peak MB"), starts),
            compilers,
        ]
    )
    return text, headlines


def accuracy_report(checkpoint: Path, data: Path, gt_csv: Path) -> str:
    """Measure what int8 costs; returns the text about it."""
    table = pd.read_csv(gt_csv)[["folder_name", "label"]]
    labels = dict(table.itertuples(index=False))
    folders = [data / name for name in sorted(labels)]
    # In the order of names each class lies together, and calibration needs them all.
    folders = [folders[i] for i in np.random.default_rng(0).permutation(len(folders))]
    loaded = load_model(Config(checkpoint=str(checkpoint)))
    rows = accuracy_rows(loaded, folders, labels)
    return "\n\n".join(
        [
            f"## Accuracy of a trained model on {len(folders) - CALIBRATION_CLIPS} clips",
            f"{loaded.architecture}, {len(loaded.class_names)} classes, "
            f"{in_words(loaded.geometry)}. Int8 is calibrated on {CALIBRATION_CLIPS} others.",
            markdown(
                ("", "top-1 %", "same label as float32 %", "largest move of the top probability"),
                rows,
            ),
        ]
    )


@click.command()
@click.option("--data", required=True, help="Directory of frame folders to time with.")
@click.option("--checkpoint", type=Path, help="best.pt, to see what int8 costs in accuracy.")
@click.option("--labeled_data", type=Path, help="Directory of clips that it was not trained on.")
@click.option("--gt_csv", type=Path, help="folder_name,label of these clips.")
@click.option("--clips", default=8, help="Clips of a round.")
@click.option("--rounds", default=5, help="Rounds, of which medians are taken.")
def main(
    data: str,
    checkpoint: Path | None,
    labeled_data: Path | None,
    gt_csv: Path | None,
    clips: int,
    rounds: int,
) -> None:
    """Measure, print and write the table."""
    if len({option is None for option in (checkpoint, labeled_data, gt_csv)}) > 1:
        raise click.UsageError("checkpoint, labeled_data and gt_csv are needed together.")
    torch.set_num_threads(available_cores())
    text, headlines = report(Path(data).resolve(), clips, rounds)
    if checkpoint and labeled_data and gt_csv:
        text += "\n\n" + accuracy_report(checkpoint, labeled_data, gt_csv)
    write_result("inference", cpu_name(), text, headlines)


if __name__ == "__main__":
    main()
