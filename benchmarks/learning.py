"""Whether training learns: a plain reference, ours from scratch, and ours on ImageNet features.

    python -m benchmarks.learning --data ../shared/data/k400tiny_images \
        --gt_csv ../shared/data/k400tiny_ground_truth.csv

On the rendered sample each side trains with several seeds and is scored on its test split. Real
clips are cross-validated with several seeds: the folds hold whole sources, so each clip is
predicted once a seed, by a model that saw no clip of its source. An hour on two cores: every
finished run is kept in `--output_dir`, and what is there already is not run again. The table is
made of all that is there and written to `benchmarks/results/`, in a file named by the processor.
"""

import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch.optim import SGD
from torch.utils.data import DistributedSampler

from benchmarks.common import write_result
from benchmarks.learning_table import FOLDS, SIDES, TITLES, Key, Run, load_runs, percent, report
from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.config.recipes import load_recipe
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.feature_cache import resolve_features
from k400tiny_lib.data.loading.frame_cache import resolve_frame_cache
from k400tiny_lib.data.loading.loader import make_loader
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.evaluation.predictions import make_table, predict_clips
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.system import cpu_name
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.optim import make_scheduler
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import keep_features, make_train_state

CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"), restarts=0)
# What both R(2+1)D-18 from scratch share: the clips and how many of them are seen.
BUDGET = ("clip_len", "resize_size", "crop_size", "batch_size", "num_epochs")
REFERENCE: dict[str, Any] = {
    "optimizer": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "scheduler": "constant",
    "warmup_epochs": 0.0,
    "augmentation": "none",
    "label_smoothing": 0.0,
    "amp": "off",
}
# R(2+1)D-18 from scratch on a hundred real clips, by what two cores can do in minutes; chosen
# before any fold had been predicted with it.
SCRATCH: dict[str, Any] = {
    "clip_len": 4,
    "resize_size": 36,
    "crop_size": 32,
    "augmentation": "flip",
    "batch_size": 8,
    "num_epochs": 15,
    "optimizer": "adamw",
    "lr": 1e-3,
    "weight_decay": 0.05,
    "scheduler": "cosine",
    "warmup_epochs": 1.0,
    "label_smoothing": 0.1,
}


def recipe_of(data: str, side: str) -> dict[str, Any]:
    """The parameters of a side; the reference has the budget of ours from scratch."""
    if side == "small":
        # Mirroring would turn "moving left" into "moving right".
        return load_recipe("small") | ({"augmentation": "none"} if data == "sample" else {})
    ours = load_recipe("sample") if data == "sample" else SCRATCH
    if side == "scratch":
        return ours
    return {name: ours[name] for name in BUDGET} | REFERENCE


def folds(
    clips: Sequence[Clip], number: int = FOLDS, seed: int = 0
) -> list[tuple[list[Clip], list[Clip]]]:
    """Cut clips into folds of whole sources, as alike in their classes as these allow.

    Returns:
        (training clips, held out clips) of each fold; every clip is held out once.
    """
    cut = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(
        clips, [clip.target for clip in clips], [clip.group for clip in clips]
    )
    return [([clips[i] for i in train], [clips[i] for i in held]) for train, held in cut]


def in_one_order(clips: Sequence[Clip], seed: int) -> list[Clip]:
    """Shuffle clips once: lists sorted by class would give the reference batches of one class."""
    return [clips[i] for i in np.random.default_rng(seed).permutation(len(clips))]


def make_reference(state: TrainState) -> None:
    """Change a state into that of the reference recipe.

    SGD treats all parameters alike, the clips have the same order in every epoch, none is dropped,
    and each is always the same frames.
    """
    config, loader = state.config, state.train_loader
    assert isinstance(loader.dataset, ClipDataset)
    assert isinstance(loader.sampler, DistributedSampler)
    loader.dataset.training = False
    loader.sampler.shuffle = False
    state.train_loader = make_loader(
        loader.dataset, loader.sampler, batch_size=config.batch_size, num_workers=0
    )
    state.optimizer = SGD(
        state.model.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
    )
    state.scheduler = make_scheduler(state.optimizer, config, len(state.train_loader))


def train_and_predict(key: Key, annotations: Annotations, base: Config, features_dir: Path) -> Run:
    """Train on the split `train`, take the last weights, predict the split `test`."""
    recipe = recipe_of(key.data, key.side)
    # `base` has the sizes of another model.
    sizes = dict.fromkeys(("clip_len", "resize_size", "crop_size"), AUTO)
    config = base.replace(**sizes | recipe, seed=key.seed, num_workers=0)
    pack = resolve_frame_cache(config, annotations)  # of all clips: one for all runs
    train, test = in_one_order(annotations.splits["train"], key.seed), annotations.splits["test"]
    # Validation decides nothing here: the last weights count.
    splits = {"train": train, "val": train[:1], "test": test}
    annotations = dataclasses.replace(annotations, splits=splits)
    history: list[dict[str, float]] = []

    def on_epoch(state: TrainState, metrics: dict[str, float], is_best: bool) -> None:
        history.append(metrics)
        print(
            f"{key} epoch {state.epoch:2d} train loss {metrics['train_loss']:.3f} acc1 "
            f"{metrics['train_acc1']:5.1f} {metrics['clips_per_second']:.1f} clips/s",
            flush=True,
        )

    start = time.perf_counter()
    # Not the features of an earlier run: their time counts.
    config = config.replace(cache_dir=str(features_dir))
    state = make_train_state(config, annotations, CPU, pack)
    if key.side == "reference":
        make_reference(state)
    if frames := resolve_features(config, annotations):
        keep_features(state, annotations, frames)
    fit(state, on_epoch)
    seconds = time.perf_counter() - start
    table = predict_with(state, test)
    loader = state.train_loader
    per_epoch = len(loader) * config.batch_size if loader.drop_last else len(train)
    return Run(
        *key,
        recipe,
        per_epoch * config.num_epochs,
        history[-1]["train_acc1"],
        seconds,
        os.getloadavg()[0],
        table.to_csv(index=False),
    )


def predict_with(state: TrainState, clips: Sequence[Clip]) -> pd.DataFrame:
    """The predictions table of the trained weights, one center view of each clip, in float32."""
    config = state.config
    rows = predict_clips(
        state.evaluated_model.eval(),
        clips,
        range(len(clips)),
        Path(config.data_path),
        Geometry.trained_with(config),
        ViewProtocol(1, 1),
        batch_size=config.batch_size,
        num_workers=0,
        device=CPU.device,
    )
    return make_table(clips, [rows])


def prepare_clips(
    data: str, folder: Path, data_path: str, gt_csv: str
) -> tuple[Config, Annotations]:
    """Render or check the clips; the parameters that say where they are, and their splits."""
    base = Config(output_dir=str(folder / "data"), cache_dir=str(folder / "frames"))
    if data == "real":
        base = base.replace(data_path=data_path, gt_csv=gt_csv)
    prepared = prepare(base, open_source(base))
    return base.replace(data_path=str(prepared.directory)), prepared.annotations


def fold_of(annotations: Annotations, seed: int, number: int) -> Annotations:
    """All clips as one fold: `test` is held out."""
    clips = sorted(annotations.clips, key=lambda clip: clip.video)
    train, held = folds(clips, seed=seed)[number]
    return dataclasses.replace(annotations, splits={"train": train, "val": [], "test": held})


def numbers_of(text: str) -> list[int]:
    """Seeds or folds as on the command line: 0,1,2."""
    return [int(part) for part in text.split(",")]


@click.command()
@click.option("--data", default="../shared/data/k400tiny_images", help="Directory of real clips.")
@click.option(
    "--gt_csv", default="../shared/data/k400tiny_ground_truth.csv", help="Their ground truth."
)
@click.option("--output_dir", default=".k400tiny/learning", help="Where finished runs are kept.")
@click.option("--only", type=click.Choice(list(TITLES)), help="One of the two data sets.")
@click.option("--side", type=click.Choice(SIDES), help="One of the sides.")
@click.option("--seeds", default="0,1,2", help="Seeds, on real clips of the folds too.")
@click.option("--folds", "held", default="0,1,2", help="Folds of the real clips.")
def main(
    data: str,
    gt_csv: str,
    output_dir: str,
    only: str | None,
    side: str | None,
    seeds: str,
    held: str,
) -> None:
    """Train what is missing, print and write the table of all that is there."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "runs.jsonl"
    for name in [only] if only else TITLES:
        base, annotations = prepare_clips(name, folder, data, gt_csv)
        numbers = numbers_of(held) if name == "real" else [0]
        for seed, number in itertools.product(numbers_of(seeds), numbers):
            clips = annotations if name == "sample" else fold_of(annotations, seed, number)
            for each in [side] if side else SIDES:
                key = Key(name, each, seed, number)
                done = load_runs(file).get(key)
                if done is not None and done.recipe == recipe_of(name, each):
                    continue
                with tempfile.TemporaryDirectory(dir=folder) as features:
                    run = train_and_predict(key, clips, base, Path(features))
                with file.open("a") as lines:
                    lines.write(json.dumps(dataclasses.asdict(run)) + "\n")
                print(f"{key}: top-1 {percent(run.table)}", flush=True)
    # What other recipes have left in the folder does not count.
    runs = [run for run in load_runs(file).values() if run.recipe == recipe_of(run.data, run.side)]
    write_result("learning", cpu_name(), *report(runs))


if __name__ == "__main__":
    main()
