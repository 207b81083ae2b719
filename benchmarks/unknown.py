"""What the confidence threshold catches of a class that the model has never seen.

    python -m benchmarks.unknown

Leave one class out: the recipe of the sample trains without one class of the rendered sample, and
all clips of that class are then clips of none of the model's classes. They look like the others
(the same rendering, another motion or shape), so they are the hard case: a real video is further
away. Every finished class is kept in `--output_dir`, and is not run again; the table is made of all
that are there and written to `benchmarks/results/`, in a file named by the processor.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pandas as pd

from benchmarks.common import markdown, write_result
from benchmarks.learning import CPU, predict_with, prepare_clips, recipe_of
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
from k400tiny_lib.evaluation.calibration import calibrate
from k400tiny_lib.evaluation.shift.unknown import join_unknown, judge_unknown, predict_unknown
from k400tiny_lib.evaluation.shift.unknown_clips import UnknownClips
from k400tiny_lib.evaluation.threshold import choose_threshold
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.system import cpu_name
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import make_train_state

HEADER = (
    *("class left out", "test top-1, %", "temperature", "threshold", "right kept, %"),
    *("wrong caught, %", "unknown clips", "unknown caught, %", "unknown above 0.99, %", "AUROC"),
)


def without(annotations: Annotations, label: str) -> Annotations:
    """The annotations of the other classes, with ids from 0."""
    others = [name for name in annotations.class_names if name != label]
    new_id = {annotations.categories[name]: number for number, name in enumerate(others)}
    splits = {
        split: [
            dataclasses.replace(clip, target=new_id[clip.target])
            for clip in clips
            if clip.target in new_id
        ]
        for split, clips in annotations.splits.items()
    }
    categories = {name: number for number, name in enumerate(others)}
    return dataclasses.replace(annotations, categories=categories, splits=splits)


def measure(config: Config, annotations: Annotations, label: str) -> dict[str, Any]:
    """Train without a class and answer its clips; the numbers of one row."""
    known, start = without(annotations, label), time.perf_counter()
    # The packed frames are those of all clips: one pack for all classes.
    state = make_train_state(config, known, CPU, resolve_frame_cache(config, annotations))

    def on_epoch(state: TrainState, metrics: dict[str, float], is_best: bool) -> None:
        print(f"{label} epoch {state.epoch:2d} val acc1 {metrics['val_acc1']:5.1f}", flush=True)

    fit(state, on_epoch)
    model, data_path = state.evaluated_model.eval(), Path(config.data_path)
    geometry, protocol = Geometry.trained_with(config), ViewProtocol(1, 1)
    options: dict[str, Any] = {
        "batch_size": config.batch_size,
        "num_workers": 0,
        "device": CPU.device,
    }

    val, test = (predict_with(state, known.splits[split]) for split in ("val", "test"))
    calibration = calibrate(val, test)
    threshold = choose_threshold(val, test, calibration.temperature)
    target = annotations.categories[label]
    others = [clip.video for clip in annotations.clips if clip.target == target]
    clips = UnknownClips({name: data_path / name for name in others}, {}, {})
    rows = predict_unknown(model, clips, range(len(others)), geometry, protocol, **options)
    unknown = judge_unknown(
        join_unknown(clips, [rows]), test, calibration.temperature, threshold.value
    )
    return {
        "label": label,
        "acc1": 100 * float((test["predicted"] == test["target"]).mean()),
        "temperature": calibration.temperature,
        "unknown_clips": unknown.marked.clips,
        "minutes": (time.perf_counter() - start) / 60,
        **threshold.scores(),
        **unknown.scores(),
    }


def report(runs: Sequence[dict[str, Any]], num_classes: int, epochs: int) -> str:
    """The table of all classes that are done, and their mean."""

    def cell(run: dict[str, Any], name: str, digits: int) -> str:
        return f"{run[name]:.{digits}f}" if name in run else "-"

    names = {"acc1": 1, "temperature": 2, "confidence_threshold": 3, "right_kept": 1}
    names |= {"wrong_caught": 1, "unknown_clips": 0, "unknown_caught": 1, "unknown_certain": 1}
    names |= {"unknown_auroc": 3}
    rows = [[run["label"], *(cell(run, n, d) for n, d in names.items())] for run in runs]
    means = pd.DataFrame(runs).mean(numeric_only=True).to_dict()
    if len(runs) > 1:
        rows.append(["mean", *(cell(means, n, d) for n, d in names.items())])
    minutes = sum(run["minutes"] for run in runs)
    return "\n".join(
        (
            "# Clips of a class that the model has never seen",
            "",
            f"Rendered sample, its recipe with {epochs} epochs, {len(runs)} of {num_classes} "
            f"classes left out one by one; {cpu_name()}, {minutes:.0f} minutes. The last weights; "
            "temperature and threshold from the validation clips of the other classes.",
            "",
            markdown(HEADER, rows),
        )
    )


@click.command()
@click.option("--output_dir", default=".k400tiny/unknown", help="Where finished runs are kept.")
@click.option("--classes", type=int, help="How many classes to leave out; all by default.")
@click.option("--epochs", type=int, help="Of the training; the recipe's by default.")
@click.option("--amp", default="auto", help="As of train.")
@click.option("--channels_last", is_flag=True, help="As of train.")
def main(
    output_dir: str, classes: int | None, epochs: int | None, amp: str, channels_last: bool
) -> None:
    """Train what is missing, print and write the table of all that is there."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    base, annotations = prepare_clips("sample", folder, "", "")
    config = base.replace(**recipe_of("sample", "scratch"), amp=amp, num_workers=0)
    config = config.replace(num_epochs=epochs or config.num_epochs)
    if channels_last:
        config = config.replace(channels_last=True)
    file = folder / f"runs-{config.num_epochs}.jsonl"
    runs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    done = {run["label"] for run in runs}
    for label in annotations.class_names[:classes]:
        if label not in done:
            runs.append(measure(config, annotations, label))
            with file.open("a") as lines:
                lines.write(json.dumps(runs[-1]) + "\n")
    write_result(
        "unknown", cpu_name(), report(runs, len(annotations.class_names), config.num_epochs)
    )


if __name__ == "__main__":
    main()
