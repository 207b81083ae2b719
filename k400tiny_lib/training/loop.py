"""The training loop, to be read from top to bottom.

What reaches it is wired in `worker`; what it reports goes to the journal. By hand:

    mlflow run . -e train --env-manager local -P annotations=annotations.json -P data_path=frames
    torchrun --nproc-per-node 2 -m k400tiny_lib.training.worker job.json
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, DistributedSampler

from k400tiny_lib.config import Config
from k400tiny_lib.data.augmentation import MIXING, mix_batch, seeded
from k400tiny_lib.data.loading import ClipDataset, batches
from k400tiny_lib.errors import UserError
from k400tiny_lib.model import model_input
from k400tiny_lib.training.distributed import Process, average_buffers
from k400tiny_lib.training.meters import Meters
from k400tiny_lib.training.optimisation import amp_dtype

Loader = DataLoader[tuple[Tensor, int, int]]


@dataclass
class Trainer:
    """Everything that changes while training, and what it is fed with.

    Attributes:
        model: the plain model; its state_dict is what checkpoints hold.
        forward: the model as training calls it, wrapped for several processes.
        average: the moving average of the weights, evaluated and saved in place of them.
        epoch: epochs that are finished; the first epoch is number 1.
        best_epoch, best_val_acc1: of the best epoch so far; 0 and -1 before the first.
    """

    config: Config
    process: Process
    model: nn.Module
    forward: nn.Module
    average: AveragedModel | None
    optimizer: Optimizer
    scheduler: LRScheduler
    train_loader: Loader
    val_loader: Loader
    num_classes: int
    epoch: int = 0
    best_epoch: int = 0
    best_val_acc1: float = -1.0
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        fp16 = amp_dtype(self.config.amp, self.process.device) is torch.float16
        self.scaler = torch.amp.GradScaler(self.process.device.type, enabled=fp16)

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that count: the average where there is one."""
        return self.average.module if self.average is not None else self.model

    def state(self) -> dict[str, Any]:
        """What resuming needs beside the weights that count."""
        return {
            "raw_model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "scaler": self.scaler.state_dict(),
            "finished_epochs": self.epoch,
            "best_epoch": self.best_epoch,
            "best_val_acc1": self.best_val_acc1,
            "torch_rng": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.model.load_state_dict(state["raw_model"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch = state["finished_epochs"]
        self.best_epoch, self.best_val_acc1 = state["best_epoch"], state["best_val_acc1"]
        torch.set_rng_state(state["torch_rng"])


def fit(trainer: Trainer, on_epoch: Callable[[Trainer, dict[str, float], bool], None]) -> None:
    """Train until num_epochs, validating after each epoch.

    Args:
        trainer: the state; training starts at its epoch.
        on_epoch: called on every process after each epoch with the trainer, the metrics of the
            epoch and whether it is the best so far; it saves and reports.
    """
    while trainer.epoch < trainer.config.num_epochs:
        metrics = train_epoch(trainer)
        average_buffers(trainer.model)
        if trainer.average is not None:
            average_buffers(trainer.average.module)
        metrics |= validate(trainer)
        trainer.epoch += 1
        # At equal accuracy the later epoch is the better trained one.
        is_best = metrics["val_acc1"] >= trainer.best_val_acc1
        if is_best:
            trainer.best_epoch, trainer.best_val_acc1 = trainer.epoch, metrics["val_acc1"]
        on_epoch(trainer, metrics, is_best)


def train_epoch(trainer: Trainer) -> dict[str, float]:
    """One pass over the training clips in an order of its own.

    Returns:
        train_loss, train_acc1, train_acc5 (percent; over the clips as the updates saw them, a mixed
        clip counting for the heavier of its labels), lr of the last update, clips_per_second of all
        processes, data_time_fraction in [0, 1].

    Raises:
        UserError: if the loss is not finite.
    """
    config, device = trainer.config, trainer.process.device
    sampler, dataset = trainer.train_loader.sampler, trainer.train_loader.dataset
    assert isinstance(sampler, DistributedSampler)
    assert isinstance(dataset, ClipDataset)
    sampler.set_epoch(trainer.epoch)
    dataset.epoch = trainer.epoch
    dtype = amp_dtype(config.amp, device)
    meters = Meters(trainer.num_classes, device)
    num_batches = len(trainer.train_loader)
    trainer.forward.train()
    start = waited_from = time.perf_counter()
    waiting = 0.0
    num_clips = 0
    lr = config.lr

    for number, (clips, targets, _) in enumerate(batches(trainer.train_loader), start=1):
        waiting += time.perf_counter() - waited_from
        clips = clips.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        inputs, labels = model_input(trainer.model, clips), targets
        if config.augmentation == MIXING:
            with seeded(config.seed, trainer.epoch, number, trainer.process.rank):
                inputs, labels = mix_batch(inputs, targets, trainer.num_classes)
            targets = labels.argmax(1)
        is_update = number % config.grad_accum_steps == 0 or number == num_batches
        # The last update of an epoch may hold fewer batches; they weigh the same within it.
        first_of_update = (number - 1) // config.grad_accum_steps * config.grad_accum_steps
        batches_of_update = min(config.grad_accum_steps, num_batches - first_of_update)
        with _without_sync(trainer.forward, not is_update):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                logits = trainer.forward(inputs)
                loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
            trainer.scaler.scale(loss / batches_of_update).backward()
        if not torch.isfinite(loss):
            raise UserError(
                f"lr: the loss is {loss.item()} in epoch {trainer.epoch + 1}, batch {number}. "
                f"Needed: a smaller lr than {config.lr:g}, or clip_grad_norm. "
                "The last good checkpoint is kept."
            )
        if is_update:
            lr = trainer.optimizer.param_groups[0]["lr"]
            _update(trainer)
        meters.update(loss, logits, targets)
        num_clips += len(targets)
        if (
            config.print_interval
            and trainer.process.is_main
            and number % config.print_interval == 0
        ):
            print(
                f"  epoch {trainer.epoch + 1} batch {number}/{num_batches} loss {loss.item():.4f}"
            )
        waited_from = time.perf_counter()

    seconds = time.perf_counter() - start
    return meters.compute("train") | {
        "lr": lr,
        "clips_per_second": num_clips * trainer.process.world_size / seconds,
        "data_time_fraction": waiting / seconds,
    }


def _without_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
    """Let DDP exchange gradients only at the last batch of an update."""
    if skip and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def _update(trainer: Trainer) -> None:
    trainer.scaler.unscale_(trainer.optimizer)
    if trainer.config.clip_grad_norm:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip_grad_norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad()
    trainer.scheduler.step()
    if trainer.average is not None:
        trainer.average.update_parameters(trainer.model)


@torch.inference_mode()
def validate(trainer: Trainer) -> dict[str, float]:
    """Score the validation clips, each exactly once on any number of processes.

    Returns:
        val_loss (plain cross entropy), val_acc1, val_acc5 (percent).
    """
    device = trainer.process.device
    dtype = amp_dtype(trainer.config.amp, device)
    meters = Meters(trainer.num_classes, device)
    # Not the wrapped model: the processes may have different numbers of batches.
    model = trainer.evaluated_model.eval()
    for clips, targets, _ in batches(trainer.val_loader):
        clips, targets = clips.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(model_input(model, clips))
        meters.update(F.cross_entropy(logits.float(), targets), logits, targets)
    return meters.compute("val")
