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
from torch.utils.data import DataLoader

from k400tiny_lib.config import Config
from k400tiny_lib.data.loading.augmentation import AUGMENTATIONS, seeded
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.loader import batches
from k400tiny_lib.distributed.process import Process, TrainSampler, average_buffers
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.training.freezing import freeze_backbone
from k400tiny_lib.training.meters import Meters
from k400tiny_lib.training.optim import amp_dtype
from k400tiny_lib.training.stopping import out_of_patience

Loader = DataLoader[tuple[Tensor, int, int]]


class Interrupted(Exception):
    """A signal has ended training, in an orderly way: the state is written."""


@dataclass
class Trainer:
    """Everything that changes while training, and what it is fed with.

    Attributes:
        model: the plain model; its state_dict is what checkpoints hold.
        forward: the model as training calls it, wrapped for several processes.
        average: the moving average of the weights, evaluated and saved in place of them.
        stop: whether a signal asks this process to end.
        epoch: epochs that are finished; the first epoch is number 1.
        batch: batches of the running epoch whose gradients are in the weights.
        updates: of the weights, over all epochs.
        lr: of the last update.
        meters: the running epoch so far, as this process saw it.
        seconds, waiting: that the running epoch has taken, and waited for data, so far.
        best_epoch, best_val_acc1: of the best epoch so far; 0 and -1 before the first.
        improved_epoch: the last epoch that was better than all before, not merely as good.
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
    stop: Callable[[], bool] = lambda: False
    epoch: int = 0
    batch: int = 0
    updates: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0
    best_epoch: int = 0
    best_val_acc1: float = -1.0
    meters: Meters = field(init=False)
    improved_epoch: int = 0
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        fp16 = amp_dtype(self.config.amp, self.config.model, self.process.device) is torch.float16
        self.scaler = torch.amp.GradScaler(self.process.device.type, enabled=fp16)
        self.meters = Meters(self.num_classes, self.process.device)

    @property
    def evaluated_model(self) -> nn.Module:
        """The weights that count: the average where there is one."""
        return self.average.module if self.average is not None else self.model

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train: all epochs done, or patience exhausted."""
        return self.epoch >= self.config.num_epochs or out_of_patience(
            self.epoch, self.improved_epoch, self.config.patience
        )


def fit(
    trainer: Trainer,
    on_epoch: Callable[[Trainer, dict[str, float], bool], None],
    on_update: Callable[[Trainer], None] = lambda trainer: None,
) -> None:
    """Train until num_epochs or out of patience, validating after each epoch.

    Args:
        trainer: the state; training starts at its epoch and the batch within.
        on_epoch: called on every process after each epoch with the trainer, the metrics of the
            epoch and whether it is the best so far; it saves and reports.
        on_update: called on every process where the state can be saved: after each update of the
            weights, and after validation; it may raise Interrupted.
    """
    while not trainer.finished:
        metrics = train_epoch(trainer, on_update)
        metrics |= validate(trainer)
        on_update(trainer)  # does not return if a signal has cut the validation short
        trainer.epoch += 1
        trainer.batch, trainer.seconds, trainer.waiting = 0, 0.0, 0.0
        trainer.meters = Meters(trainer.num_classes, trainer.process.device)
        if metrics["val_acc1"] > trainer.best_val_acc1:
            trainer.improved_epoch = trainer.epoch
        # At equal accuracy the later epoch is the better trained one.
        is_best = metrics["val_acc1"] >= trainer.best_val_acc1
        if is_best:
            trainer.best_epoch, trainer.best_val_acc1 = trainer.epoch, metrics["val_acc1"]
        on_epoch(trainer, metrics, is_best)


def train_epoch(trainer: Trainer, on_update: Callable[[Trainer], None]) -> dict[str, float]:
    """One pass over the training clips in an order of its own, or what is left of it.

    Returns:
        train_loss, train_acc1, train_acc5 (percent; over the clips as the updates saw them, a mixed
        clip counting for the heavier of its labels), lr of the last update, clips_per_second of all
        processes, data_time_fraction in [0, 1].

    Raises:
        UserError: if the loss is not finite, on every process.
    """
    config, device = trainer.config, trainer.process.device
    sampler, dataset = trainer.train_loader.sampler, trainer.train_loader.dataset
    assert isinstance(sampler, TrainSampler)
    assert isinstance(dataset, ClipDataset)
    sampler.begin(trainer.epoch, trainer.batch * config.batch_size)
    dataset.epoch = trainer.epoch
    mix = AUGMENTATIONS[config.augmentation].per_batch
    dtype = amp_dtype(config.amp, config.model, device)
    num_batches = len(trainer.train_loader)
    trainer.forward.train()
    if config.freeze_epochs:
        freeze_backbone(trainer.model, trainer.epoch < config.freeze_epochs)
    broken = ""
    then = time.perf_counter()

    for number, (clips, targets, positions) in enumerate(
        batches(trainer.train_loader), start=trainer.batch + 1
    ):
        trainer.waiting += time.perf_counter() - then
        clips = clips.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        inputs, labels = model_input(trainer.model, clips), targets
        if mix is not None:
            with seeded(config.seed, trainer.epoch, number, trainer.process.rank):
                inputs, labels = mix(inputs, targets, trainer.num_classes)
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
            broken = broken or _describe(loss, trainer, number, dataset, positions)
        trainer.meters.update(loss, logits, targets)
        if is_update:
            _refuse(broken, trainer.process)
            _update(trainer)
            trainer.batch = number
            if number == num_batches:
                average_buffers(trainer.model)
                if trainer.average is not None:
                    average_buffers(trainer.average.module)
        if (
            config.print_interval
            and trainer.process.is_main
            and number % config.print_interval == 0
        ):
            print(
                f"  epoch {trainer.epoch + 1} batch {number}/{num_batches} loss {loss.item():.4f}"
            )
        trainer.seconds += time.perf_counter() - then
        if is_update:
            on_update(trainer)
        then = time.perf_counter()

    num_clips = num_batches * config.batch_size * trainer.process.world_size
    return trainer.meters.compute("train") | {
        "lr": trainer.lr,
        "clips_per_second": num_clips / trainer.seconds,
        "data_time_fraction": trainer.waiting / trainer.seconds,
    }


def _without_sync(model: nn.Module, skip: bool) -> contextlib.AbstractContextManager[Any]:
    """Let DDP exchange gradients only at the last batch of an update."""
    if skip and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()


def _describe(
    loss: Tensor, trainer: Trainer, number: int, dataset: ClipDataset, positions: Tensor
) -> str:
    names = [dataset.clips[position].video for position in positions.tolist()]
    return (
        f"lr: the loss is {loss.item()} in epoch {trainer.epoch + 1}, batch {number}, of the "
        f"clips {', '.join(names)}. Needed: a smaller lr than {trainer.config.lr:g}, "
        "clip_grad_norm, or these clips mended. The last good checkpoint is kept."
    )


def _refuse(broken: str, process: Process) -> None:
    """Stop all processes where one has met a loss that is not finite, before it is in the weights.

    A process that stopped alone would leave the others waiting for its gradients.
    """
    [anywhere] = process.anywhere(bool(broken))
    if anywhere:
        raise UserError(next(filter(None, process.gather(broken))))


def _update(trainer: Trainer) -> None:
    trainer.lr = trainer.optimizer.param_groups[0]["lr"]
    trainer.scaler.unscale_(trainer.optimizer)
    if trainer.config.clip_grad_norm:
        nn.utils.clip_grad_norm_(trainer.model.parameters(), trainer.config.clip_grad_norm)
    trainer.scaler.step(trainer.optimizer)
    trainer.scaler.update()
    trainer.optimizer.zero_grad()
    trainer.scheduler.step()
    trainer.updates += 1
    if trainer.average is not None:
        trainer.average.update_parameters(trainer.model)


@torch.inference_mode()
def validate(trainer: Trainer) -> dict[str, float]:
    """Score the validation clips, each exactly once on any number of processes.

    A signal cuts it short.

    Returns:
        val_loss (plain cross entropy), val_acc1, val_acc5 (percent).
    """
    device = trainer.process.device
    dtype = amp_dtype(trainer.config.amp, trainer.config.model, device)
    meters = Meters(trainer.num_classes, device)
    # Not the wrapped model: the processes may have different numbers of batches.
    model = trainer.evaluated_model.eval()
    for clips, targets, _ in batches(trainer.val_loader):
        clips, targets = clips.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(model_input(model, clips))
        meters.update(F.cross_entropy(logits.float(), targets), logits, targets)
        if trainer.stop():
            break
    return meters.compute("val")
