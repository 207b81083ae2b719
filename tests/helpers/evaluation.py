"""Tables, annotations, checkpoints and in-process workers for the tests of the evaluation."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.evaluation import worker
from k400tiny_lib.evaluation.predictions import make_table, probability_columns
from k400tiny_lib.models.weights import build_model
from tests.conftest import LABELS, write_clip

GEOMETRY = {"clip_len": 4, "resize_size": 32, "crop_size": 32}


def random_table(
    num_clips: int = 60, num_classes: int = 7, clips_per_group: int = 3, seed: int = 0
) -> pd.DataFrame:
    """Predictions that are mostly correct, of classes that all occur."""
    rng = np.random.default_rng(seed)
    targets = np.arange(num_clips) % num_classes
    logits = rng.normal(size=(num_clips, num_classes))
    logits[np.arange(num_clips), targets] += 1.5
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    clips = [
        Clip(f"v{number:03d}", (0, 9), int(target), f"g{number // clips_per_group}")
        for number, target in enumerate(targets)
    ]
    clip_predicted = np.where(rng.random(num_clips) < 0.2, 0, probabilities.argmax(1))
    columns = probability_columns(probabilities)
    return make_table(clips, [columns.assign(clip_predicted=clip_predicted)])


def clips_of(table: pd.DataFrame) -> list[Clip]:
    """The clips of a table."""
    rows = table[["video", "target", "group"]].itertuples(index=False)
    return [Clip(video, (0, 9), int(target), group) for video, target, group in rows]


def write_annotated_clips(
    root: Path, num_clips: int = 7, num_frames: int = 6, labels: tuple[str, ...] = LABELS
) -> tuple[Path, Path, Annotations]:
    """Val and test splits of `num_clips` each; returns (data_path, annotations file, content)."""
    categories = {label: index for index, label in enumerate(labels)}
    splits: dict[str, list[Clip]] = {"train": [], "val": [], "test": []}
    for split in ("val", "test"):
        for number in range(num_clips):
            video = f"{split}{number}"
            write_clip(root / "frames" / video, seed=len(video) * number, num_frames=num_frames)
            target = number % len(LABELS)
            splits[split].append(Clip(video, (0, num_frames - 1), target, f"g{number // 2}"))
    annotations = Annotations(categories, splits, "0123456789abcdef")
    path = root / "annotations.json"
    path.write_text(annotations.to_json())
    return root / "frames", path, annotations


def write_checkpoint(
    path: Path, labels: tuple[str, ...] = LABELS, seed: int = 0, **trained: str
) -> Path:
    """An untrained best.pt whose predictions differ from clip to clip; `trained` is its config.

    mc3_18 has a third of the weights of r2plus1d_18, most of the time here is theirs.
    """
    trained = {"model": "mc3_18"} | trained
    torch.manual_seed(seed)
    model = build_model(trained["model"], len(labels))
    with torch.no_grad():
        for parameter in model.fc.parameters():
            parameter.mul_(20)  # an untrained head gives nearly equal probabilities
    content = {
        "model": model.state_dict(),
        "epoch": 3,
        "config": Config(**GEOMETRY | trained).to_dict(),
        "categories": {label: index for index, label in enumerate(labels)},
        "run_id": "",
    }
    torch.save(content, path)
    return path


def run_workers_here(job: worker.Job, processes: int = 1) -> None:
    """Do the work of several evaluation processes in this one, one rank after the other."""
    for rank in range(processes):
        worker.run(job, Process(rank, processes, processes, torch.device("cpu"), restarts=0))
