"""Training processes for tests: small, quickly started, and easy to kill."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.training import worker
from k400tiny_lib.training.worker import Job
from tests.conftest import LABELS, NUM_FRAMES

CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"), restarts=0)


def annotate(data_path: Path, num_val: int = 5, num_train: int | None = None) -> Annotations:
    """Every fifth clip or so for validation, the rest for training."""
    clips = [
        Clip(folder.name, (0, NUM_FRAMES - 1), int(folder.name[1]), folder.name[:4])
        for folder in sorted(data_path.iterdir())
    ]
    val = clips[::5][:num_val]
    train = [c for c in clips if c not in val][:num_train]
    categories = {label: index for index, label in enumerate(LABELS)}
    return Annotations(categories, {"train": train, "val": val, "test": val})


def config(data_path: Path, folder: Path, **changes: Any) -> Config:
    """Clips of 4 frames at 32 px in batches of 4, two epochs."""
    small: dict[str, Any] = {
        "data_path": str(data_path),
        "checkpoint_dir": str(folder),
        "clip_len": 4,
        "resize_size": 32,
        "crop_size": 32,
        "batch_size": 4,
        "num_workers": 0,
        "num_epochs": 2,
        "warmup_epochs": 0.0,
        "annotations": str(folder / "annotations.json"),
        "amp": "off",
        "channels_last": False,  # the same numbers on any CPU
    }
    return Config(**(small | changes))


def make_job(settled: Config, annotations: Annotations, run_id: str = "run") -> Job:
    """A job whose files lie in its checkpoint_dir."""
    folder = Path(settled.checkpoint_dir)
    folder.mkdir(parents=True, exist_ok=True)
    Path(settled.annotations).write_text(annotations.to_json())
    return Job(settled, run_id, folder / f"{run_id}.jsonl", folder / f"error-{run_id}.txt")


def slim_down() -> None:
    """Let this process train the first two of four stages: a checkpoint of 12 MB, not of 140."""
    whole = worker.initial_model

    def slim(config: Config, num_classes: int) -> nn.Module:
        model: Any = whole(config, num_classes)
        model.layer3, model.layer4 = nn.Identity(), nn.Identity()
        model.fc = nn.Linear(128, num_classes)
        return model  # type: ignore[no-any-return]

    worker.initial_model = slim


def in_nursery(function: Callable[..., None], *arguments: Any) -> None:
    """Run function(*arguments) in a fresh process, which may fork: it has no threads."""
    process = multiprocessing.get_context("spawn").Process(
        target=_one_thread, args=(function, *arguments)
    )
    process.start()
    process.join()
    assert process.exitcode == 0


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run function(*arguments) in a process forked from a nursery, without a new import."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def run_group(world_size: int, function: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run function(process, folder, ...) in each process of a group, joined by gloo."""
    store = folder / f"store-{os.urandom(4).hex()}"
    group = [
        start(_in_group, rank, world_size, store, function, folder, *args)
        for rank in range(world_size)
    ]
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0] * world_size


def _one_thread(function: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    slim_down()
    function(*arguments)


def _in_group(
    rank: int, world_size: int, store: Path, function: Callable[..., None], *arguments: Any
) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    function(Process(rank, world_size, world_size, torch.device("cpu"), restarts=0), *arguments)
    dist.destroy_process_group()


if __name__ == "__main__":  # as a module of workers for `launch`
    slim_down()
    worker.main()
