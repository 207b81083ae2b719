"""Epochs of a frozen backbone on kept features against epochs that compute them again.

    python -m benchmarks.feature_cache --data ../shared/data/k400tiny_images \
        --gt_csv ../shared/data/k400tiny_ground_truth.csv

Both sides are whole trainings of the head with everything that belongs to one: validation, metrics
log, images, checkpoints. They take turns in one process; the side without the cache reads packed
frames, which is the fastest there is without it. An epoch is the mean over a training, and the
median over the rounds is written to `benchmarks/results/`, in a file named by the processor.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as training sets it

import torch

from benchmarks.common import Headline, in_turns, markdown, write_result
from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.data.loading.feature_cache import resolve_features
from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.metrics_log import read_entries
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.system import available_cores, cpu_name
from k400tiny_lib.training.worker import TrainingJob, keep_features, make_train_state, run

CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"), restarts=0)
CASES: list[dict[str, Any]] = [
    {"model": "r2plus1d_18", "clip_len": 8, "resize_size": 32, "crop_size": 32},
    {"model": "r2plus1d_18", "clip_len": 8, "resize_size": 64, "crop_size": 56},
    {"model": "x3d_s", "clip_len": 8, "resize_size": 128, "crop_size": 112},
    {"model": "tsn_efficientnet_lite0"},
]
KEPT, AGAIN = "kept", "computed again"
_EPOCHS = {KEPT: 60, AGAIN: 3}


def epoch_seconds(
    side: str, config: Config, annotations: Annotations, frames: Path | None, folder: Path
) -> float:
    """Seconds of an epoch of a whole training, on average."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        folder = Path(directory)
        config = config.replace(checkpoint_dir=directory, num_epochs=_EPOCHS[side])
        digest = resolve_features(config, annotations) if side == KEPT else None
        job = TrainingJob(config, folder / "metrics", "run", frames, frames_digest=digest)
        job.folder.mkdir()
        run(job, CPU)
        seconds = [entry.metrics["epoch_seconds"] for entry, _ in read_entries(job.metrics_log)]
    return sum(seconds) / len(seconds)


def measure(config: Config, annotations: Annotations, folder: Path, rounds: int) -> list[str]:
    """A row of the table."""
    frames = resolve_frame_cache(config.replace(frame_cache="packed"), annotations)
    settings = config.replace(num_epochs=config.feature_views)
    digest = resolve_features(settings, annotations)
    assert digest is not None
    state = make_train_state(settings, annotations, CPU, frames)
    start = time.perf_counter()
    keep_features(state, annotations, digest)
    computing = time.perf_counter() - start
    sides: dict[str, Callable[[], float]] = {
        side: partial(epoch_seconds, side, config, annotations, frames, folder) for side in _EPOCHS
    }
    seconds = in_turns(sides, rounds)
    return [
        f"{config.model}, {config.clip_len} x {config.crop_size} px",
        f"{computing:.1f}",
        f"{1000 * seconds[AGAIN]:.0f}",
        f"{1000 * seconds[KEPT]:.1f}",
        f"{seconds[AGAIN] / seconds[KEPT]:.0f}",
    ]


@click.command()
@click.option("--data", default="sample", help="data_path of prepare_data.")
@click.option("--gt_csv", default="none", help="gt_csv of prepare_data.")
@click.option("--rounds", default=3, help="Rounds after one to warm up.")
def main(data: str, gt_csv: str, rounds: int) -> None:
    """Measure every case and write the table."""
    load, rows = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        base = Config(
            data_path=data,
            gt_csv=gt_csv,
            output_dir=str(folder / "data"),
            cache_dir=str(folder / "cache"),
            annotations=str(folder / "annotations.json"),
            train_layers="head",
            optimizer="adamw",
            lr=1e-3,
            on_rare_class="train",
        )
        prepared = prepare(base, open_source(base))
        annotations = prepared.annotations
        Path(base.annotations).write_text(annotations.to_json())
        for case in CASES:
            if case["model"] not in ARCHITECTURES:
                continue
            own = dict.fromkeys(("clip_len", "resize_size", "crop_size"), AUTO)
            config = base.replace(data_path=str(prepared.directory), **(own | case))
            with contextlib.redirect_stdout(io.StringIO()):
                rows.append(measure(config, annotations, folder, rounds))
            print(rows[-1], flush=True)
    clips = len(annotations.splits["train"]), len(annotations.splits["val"])
    header = ["", "features of all views, s", "epoch without, ms", "epoch with, ms", "ratio"]
    text = (
        f"# Epochs of a frozen backbone, with and without the feature cache\n\n{cpu_name()}, "
        f"{available_cores()} threads, load {load:.1f} at the start; PyTorch {torch.__version__}. "
        f"{clips[0]} training and {clips[1]} validation clips; the mean epoch of a training of "
        f"{_EPOCHS[KEPT]} epochs with and {_EPOCHS[AGAIN]} without the cache, with validation, "
        "metrics log, images and checkpoints; medians of "
        f"{rounds} rounds in turns after one to warm up.\n\n"
    )
    headlines = [
        Headline(
            f"an epoch of a frozen backbone: {name}", f"{kept} ms", f"no cache: {again} ms", ratio
        )
        for name, _, again, kept, ratio in rows
    ]
    write_result("feature_cache", cpu_name(), text + markdown(header, rows), headlines)


if __name__ == "__main__":
    main()
