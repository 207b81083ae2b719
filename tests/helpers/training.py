"""Training processes for tests: small, quickly started, and easy to kill."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.training import worker
from k400tiny_lib.training.worker import TrainingJob, initial_model
from tests.conftest import LABELS, NUM_FRAMES

CPU = Process(rank=0, world_size=1, local_world_size=1, device=torch.device("cpu"), restarts=0)
# Metrics of an epoch, as the workers log them.
METRICS = {
    "train_loss": 1.5,
    "train_acc1": 40.0,
    "val_loss": 1.2,
    "val_acc1": 50.0,
    "train_acc5": 80.0,
    "val_acc5": 90.0,
    "clips_per_second": 12.34,
    "data_time_fraction": 0.07,
    "memory_gb": 3.21,
    "lr": 0.1,
    "epoch_seconds": 60.0,
}


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


def make_job(config: Config, annotations: Annotations, run_id: str = "run") -> TrainingJob:
    """A job with all its files in its checkpoint_dir; writes the annotations."""
    job = TrainingJob(config, Path(config.checkpoint_dir, f"metrics-{run_id}"), run_id)
    job.folder.mkdir(parents=True, exist_ok=True)
    Path(config.annotations).write_text(annotations.to_json())
    return job


def build_slim(config: Config, num_classes: int) -> nn.Module:
    """The first of four stages of a ResNet: a checkpoint of a few MB, not of 140."""
    model: Any = initial_model(config, num_classes)
    model.layer2, model.layer3, model.layer4 = nn.Identity(), nn.Identity(), nn.Identity()
    model.fc = nn.Linear(64, num_classes)
    return model  # type: ignore[no-any-return]


class Small(nn.Module):
    """A backbone with BatchNorm and a head, a thousandth of the real thing."""

    architecture = "r2plus1d_18"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3)
        self.norm = nn.BatchNorm3d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.norm(self.conv(clips))).mean((2, 3, 4)))
        return logits


def build_small(config: Config, num_classes: int) -> nn.Module:
    """`Small` in place of the configured architecture."""
    return Small(num_classes)


def run_spawned(function: Callable[..., None], *arguments: Any) -> None:
    """Run function(*arguments) in a fresh process without threads, which may therefore fork.

    Raises:
        AssertionError: with the traceback of what the function has raised.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_failure, args=(sender, function, *arguments))
    process.start()
    sender.close()
    failure = _received(receiver)
    process.join()
    assert process.exitcode == 0, failure


def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Run function(*arguments) in a forked process, without a new import."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def run_group(world_size: int, function: Callable[..., None], folder: Path, *args: Any) -> None:
    """Run function(process, folder, ...) in each process of a group, joined by gloo.

    Raises:
        AssertionError: with the tracebacks of what the function has raised.
    """
    store = folder / f"store-{os.urandom(4).hex()}"
    group, receivers = [], []
    for rank in range(world_size):
        receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
        member = (rank, world_size, store)
        group.append(start(_report_failure, sender, _in_group, *member, function, folder, *args))
        sender.close()
        receivers.append(receiver)
    failures = [_received(receiver) for receiver in receivers]
    for process in group:
        process.join()
    assert [process.exitcode for process in group] == [0] * world_size, "\n".join(failures)


def _report_failure(
    sender: "Connection[Any, Any]", function: Callable[..., None], *arguments: Any
) -> None:
    torch.set_num_threads(1)
    try:
        function(*arguments)
    except BaseException:
        sender.send(traceback.format_exc())
        raise
    finally:
        sender.close()


def _received(receiver: "Connection[Any, Any]") -> str:
    try:
        return str(receiver.recv())
    except EOFError:  # the process has ended without a traceback
        return ""


def _in_group(
    rank: int, world_size: int, store: Path, function: Callable[..., None], *arguments: Any
) -> None:
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world_size)
    function(Process(rank, world_size, world_size, torch.device("cpu"), restarts=0), *arguments)
    dist.destroy_process_group()


if __name__ == "__main__":  # as a module of workers for `launch`
    worker.main(build_slim)
