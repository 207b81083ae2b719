"""The state of a training run, and the part of it that checkpoints hold.

A checkpoint holds everything that a resumed run needs to match an uninterrupted one bit for bit.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from k400tiny_lib.config import Config
from k400tiny_lib.config.value_types import HEAD
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.frozen import FrozenModel
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.training.meters import Meters
from k400tiny_lib.training.optim import amp_dtype, make_scheduler

Loader = DataLoader[tuple[Tensor, int, int]]

_PROGRESS = ("batch", "updates", "lr", "best_epoch", "best_val_acc1", "best_run", "improved_epoch")


@dataclass
class TrainState:
    """The model, its data, and everything that changes while training.

    Attributes:
        model: the plain model; checkpoints hold its state_dict.
        forward: the model as training calls it: wrapped for several processes, maybe compiled;
            with train_layers=head a `FrozenModel`.
        average: the moving average of the weights, evaluated and saved in place of them.
        stop: whether a signal has asked this process to stop.
        save_due: whether this process wants the state saved after the current update.
        epoch: number of finished epochs; the first epoch is number 1.
        batch: batches of the current epoch whose gradients are in the weights.
        updates: number of updates of the weights, over all epochs.
        lr: learning rate of the last update.
        meters: metrics of the current epoch so far, of this process.
        seconds, waiting: time that the current epoch has taken, and waited for data, so far.
        best_epoch, best_val_acc1: of the best epoch so far; 0 and -1 before the first.
        best_run: the MLflow run that trained the best epoch; "" before the first.
        improved_epoch: the last epoch that was better than all before; an equal one does not count.
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
    save_due: Callable[[], bool] = lambda: False
    epoch: int = 0
    batch: int = 0
    updates: int = 0
    lr: float = 0.0
    seconds: float = 0.0
    waiting: float = 0.0
    best_epoch: int = 0
    best_val_acc1: float = -1.0
    best_run: str = ""
    improved_epoch: int = 0
    meters: Meters = field(init=False)
    amp_dtype: torch.dtype | None = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)

    def __post_init__(self) -> None:
        device = self.process.device
        self.amp_dtype = amp_dtype(self.config.amp, self.model, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp_dtype is torch.float16)
        self.meters = Meters(self.num_classes, device)

    def autocast(self) -> torch.autocast:
        """The context of forward passes: mixed precision as set by the parameter `amp`."""
        enabled = self.amp_dtype is not None
        return torch.autocast(self.process.device.type, dtype=self.amp_dtype, enabled=enabled)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and saved: the average if there is one."""
        return self.average.module if self.average is not None else self.model

    def evaluated_forward(self) -> nn.Module:
        """`evaluated_model` in evaluation mode, from `input_of` to logits, not wrapped."""
        model = self.evaluated_model.eval()
        return FrozenModel(model).eval() if self.config.train_layers == HEAD else model

    def input_of(self, batch: Tensor) -> Tensor:
        """The input of `forward`: normalized clips, or kept features as they are.

        Args:
            batch: uint8 clips (N, 3, T, H, W) or float32 features (N, C).
        """
        return batch if batch.ndim == 2 else model_input(self.model, batch)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `patience` epochs have brought no better val_acc1.

        It uses only values that are equal on all ranks and stored in checkpoints: all ranks stop at
        the same epoch, and resuming does not continue a run that has stopped.
        """
        unimproved = self.epoch - self.improved_epoch
        return self.epoch >= self.config.num_epochs or 0 < self.config.patience <= unimproved

    def end_epoch(self, val_acc1: float) -> bool:
        """Count an epoch as finished; returns whether it is the best so far."""
        self.epoch += 1
        self.batch, self.seconds, self.waiting = 0, 0.0, 0.0
        self.meters = Meters(self.num_classes, self.process.device)
        if val_acc1 > self.best_val_acc1:
            self.improved_epoch = self.epoch
        # At equal accuracy the later epoch is the better trained one.
        is_best = val_acc1 >= self.best_val_acc1
        if is_best:
            self.best_epoch, self.best_val_acc1 = self.epoch, val_acc1
        return is_best


def updates_per_epoch(num_batches: int, grad_accum_steps: int) -> int:
    """Updates of an epoch; the last one may accumulate fewer batches."""
    return -(-num_batches // grad_accum_steps)


def gather_state(state: TrainState) -> dict[str, Any]:
    """The content of a checkpoint to resume from; every process must call it.

    The order of the clips follows from the seed, the epoch and the batch, and the augmentation of a
    clip from the seed, the epoch and the clip; only dropout uses the stored random generators.

    Returns:
        The same on every process. `processes` holds, by rank, what differs between them.
    """
    return {
        "raw_model": state.model.state_dict(),
        "average": state.average.state_dict() if state.average is not None else None,
        "optimizer": state.optimizer.state_dict(),
        "scaler": state.scaler.state_dict(),
        "finished_epochs": state.epoch,
        **{name: getattr(state, name) for name in _PROGRESS},
        "order": _order(state),
        "processes": state.process.gather(_process_state(state)),
    }


def load_state(state: TrainState, checkpoint: dict[str, Any], origin: str) -> None:
    """The inverse of `gather_state`, into a state that has not been trained yet.

    Parameters that may change when a run is resumed (lr, num_epochs, ...) are those of the new run:
    momenta come from the checkpoint, and the schedule continues at the same position in epochs.

    Raises:
        UserError: if the checkpoint, called `origin`, does not fit the state.
    """
    order, saved = _order(state), checkpoint["order"]
    if checkpoint["batch"] and saved != order:
        changed = [f"{k} {saved[k]} (here {order[k]})" for k in order if saved[k] != order[k]]
        raise UserError(
            f"{origin} was saved within an epoch of other batches: {', '.join(changed)}. "
            "Needed: the same, or a checkpoint of the end of an epoch."
        )
    _check_shapes(state.model, checkpoint["raw_model"], origin)
    try:
        _load_optimizer(state.optimizer, checkpoint["optimizer"])
    except (ValueError, KeyError):
        raise UserError(
            f"{origin} was trained with another optimizer or other frozen weights. "
            "Needed: the same parameters, or load_model=<it> to start again from its weights."
        ) from None
    state.model.load_state_dict(checkpoint["raw_model"])
    if state.average is not None:
        if checkpoint["average"] is not None:
            state.average.load_state_dict(checkpoint["average"])
        else:
            state.average.module.load_state_dict(checkpoint["raw_model"])  # averaging begins here
    state.scaler.load_state_dict(checkpoint["scaler"])
    state.epoch = checkpoint["finished_epochs"]
    for name in _PROGRESS:
        setattr(state, name, checkpoint.get(name, getattr(state, name)))
    state.scheduler = _scheduler_at_position(state)
    _load_process_state(state, checkpoint["processes"])


def _check_shapes(model: nn.Module, saved: dict[str, Tensor], origin: str) -> None:
    current, before = ({k: v.shape for k, v in s.items()} for s in (model.state_dict(), saved))
    differing = sorted(k for k, _ in current.items() ^ before.items())
    if differing:
        raise UserError(
            f"{origin} is of a model with other weights: {len(differing)} tensors differ, first "
            f"{differing[0]}. Needed: the same clip_len, crop_size and other parameters of the "
            "model, or load_model=<it> to start again from its weights."
        )


def _scheduler_at_position(state: TrainState) -> LRScheduler:
    # `updates` does not tell: those before the checkpoint may have been of another number of clips.
    num_batches, accum = len(state.train_loader), state.config.grad_accum_steps
    per_epoch = updates_per_epoch(num_batches, accum)
    # The last update of an epoch may have fewer batches.
    in_epoch = per_epoch if state.batch == num_batches else state.batch // accum
    start = state.epoch * per_epoch + in_epoch
    return make_scheduler(state.optimizer, state.config, per_epoch, start)


def _order(state: TrainState) -> dict[str, int]:
    """Everything but the epoch that determines the order of the clips and their batches."""
    return {
        "seed": state.config.seed,
        "training clips": len(state.train_loader.dataset),  # type: ignore[arg-type]
        "clips per batch of all processes": state.config.batch_size * state.process.world_size,
    }


def _load_optimizer(optimizer: Optimizer, saved: dict[str, Any]) -> None:
    settings = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    names = [sorted(group.keys()) for group in optimizer.state_dict()["param_groups"]]
    if names != [sorted(group.keys()) for group in saved["param_groups"]]:
        raise ValueError("another optimizer")
    optimizer.load_state_dict(saved)
    for group, values in zip(optimizer.param_groups, settings, strict=True):
        group.update(values)


def _process_state(state: TrainState) -> dict[str, Any]:
    """The state that differs between processes.

    DistributedDataParallel broadcasts rank 0's BatchNorm statistics before each forward pass, but
    not those of the average, and nothing does between the last batch and the end of an epoch.
    """
    device = state.process.device
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "buffers": _buffers(state.model),
        "average_buffers": _buffers(state.average) if state.average is not None else {},
        "meters": state.meters.sums.cpu(),
        "seconds": state.seconds,
        "waiting": state.waiting,
    }


def _load_process_state(state: TrainState, processes: list[dict[str, Any]]) -> None:
    device, world_size = state.process.device, state.process.world_size
    as_many = len(processes) == world_size
    saved = processes[state.process.rank if as_many else 0]
    state.seconds, state.waiting = saved["seconds"], saved["waiting"]
    if not as_many:
        # Each process takes its share of the sums; dropout is drawn again.
        state.meters.sums += sum(p["meters"] for p in processes).to(device) / world_size
        return
    torch.set_rng_state(saved["torch_rng"])
    if device.type == "cuda" and saved["cuda_rng"] is not None:
        torch.cuda.set_rng_state(saved["cuda_rng"], device)
    _fill(state.model, saved["buffers"])
    if state.average is not None:
        _fill(state.average, saved["average_buffers"])
    state.meters.sums += saved["meters"].to(device)


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.cpu() for name, buffer in model.named_buffers()}


def _fill(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
