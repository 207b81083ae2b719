"""The state of training as a checkpoint holds it: what makes a resumed run the undisturbed one."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from k400tiny_lib.errors import UserError
from k400tiny_lib.training.loop import Trainer


def gather_state(trainer: Trainer) -> dict[str, Any]:
    """What training needs to go on as if nothing had happened; every process must call it.

    Where the clips of an epoch stand in its order follows from the seed, the epoch and the batch;
    what is done to a clip from the seed, the epoch and the clip. The generators are those of
    dropout.

    Returns:
        The state, the same on every process. `processes` holds by rank what differs between them.
    """
    return {
        "raw_model": trainer.model.state_dict(),
        "average": trainer.average.state_dict() if trainer.average is not None else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "updates": trainer.updates,  # where the schedule stands
        "lr": trainer.lr,
        "finished_epochs": trainer.epoch,
        "batch": trainer.batch,
        "order": _order(trainer),
        "best_epoch": trainer.best_epoch,
        "best_val_acc1": trainer.best_val_acc1,
        "improved_epoch": trainer.improved_epoch,
        "processes": trainer.process.gather(_own_state(trainer)),
    }


def load_state(trainer: Trainer, state: dict[str, Any], source: str) -> None:
    """The inverse of `gather_state`, into a trainer that has not trained yet.

    Parameters that may change when a run is resumed (lr, num_epochs, ...) are this run's: the state
    brings the momenta, and the schedule is walked anew up to where the state stands.

    Args:
        trainer: the trainer to fill.
        state: as `gather_state` returned it.
        source: where it came from, for the message.

    Raises:
        UserError: if the state does not fit the trainer.
    """
    if state["batch"] and state["order"] != _order(trainer):
        changed = ", ".join(
            f"{name} {state['order'][name]} (here {value})"
            for name, value in _order(trainer).items()
            if state["order"][name] != value
        )
        raise UserError(
            f"{source} stands within an epoch over other batches: {changed}. "
            "Needed: the same, or a checkpoint of the end of an epoch."
        )
    try:
        _load_optimizer(trainer.optimizer, state["optimizer"])
    except (ValueError, KeyError):
        raise UserError(
            f"{source} was trained with another optimizer or other frozen weights. "
            "Needed: the same parameters, or load_model=<it> to start anew from its weights."
        ) from None
    trainer.model.load_state_dict(state["raw_model"])
    if trainer.average is not None:
        if state["average"] is not None:
            trainer.average.load_state_dict(state["average"])
        else:
            trainer.average.module.load_state_dict(state["raw_model"])  # the average begins here
    trainer.scaler.load_state_dict(state["scaler"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "lr_scheduler.step() before optimizer.step()"
        for _ in range(state["updates"]):
            trainer.scheduler.step()
    trainer.updates, trainer.lr = state["updates"], state["lr"]
    trainer.epoch, trainer.batch = state["finished_epochs"], state["batch"]
    trainer.best_epoch, trainer.best_val_acc1 = state["best_epoch"], state["best_val_acc1"]
    trainer.improved_epoch = state["improved_epoch"]
    _load_own_state(trainer, state["processes"])


def _order(trainer: Trainer) -> dict[str, int]:
    """What the order of the clips in batches depends on, beside the epoch."""
    return {
        "seed": trainer.config.seed,
        "training clips": len(trainer.train_loader.dataset),  # type: ignore[arg-type]
        "clips per batch of all processes": trainer.config.batch_size * trainer.process.world_size,
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    own = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    kinds = [sorted(group.keys()) for group in optimizer.state_dict()["param_groups"]]
    if kinds != [sorted(group.keys()) for group in state["param_groups"]]:
        raise ValueError("another optimizer")
    optimizer.load_state_dict(state)
    for group, values in zip(optimizer.param_groups, own, strict=True):
        group.update(values)


def _own_state(trainer: Trainer) -> dict[str, Any]:
    """What this process alone knows.

    DistributedDataParallel sends rank 0's BatchNorm statistics around before each forward pass, but
    nobody does so for those of the average, nor between the last batch and the end of an epoch.
    """
    device = trainer.process.device
    on_gpu = device.type == "cuda"
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state(device) if on_gpu else None,
        "buffers": _buffers(trainer.model),
        "average_buffers": _buffers(trainer.average) if trainer.average is not None else {},
        "meters": trainer.meters.sums.cpu(),
        "seconds": trainer.seconds,
        "waiting": trainer.waiting,
    }


def _load_own_state(trainer: Trainer, processes: list[dict[str, Any]]) -> None:
    if len(processes) != trainer.process.world_size:
        # Other processes, other shares: rank 0 stands for all, dropout is drawn anew.
        trainer.meters.sums += sum(p["meters"] for p in processes).to(trainer.process.device) / (
            trainer.process.world_size
        )
        trainer.seconds, trainer.waiting = processes[0]["seconds"], processes[0]["waiting"]
        return
    own = processes[trainer.process.rank]
    torch.set_rng_state(own["torch_rng"])
    if trainer.process.device.type == "cuda" and own["cuda_rng"] is not None:
        torch.cuda.set_rng_state(own["cuda_rng"], trainer.process.device)
    _fill(trainer.model, own["buffers"])
    if trainer.average is not None:
        _fill(trainer.average, own["average_buffers"])
    trainer.meters.sums += own["meters"].to(trainer.process.device)
    trainer.seconds, trainer.waiting = own["seconds"], own["waiting"]


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.cpu() for name, buffer in model.named_buffers()}


def _fill(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    for name, buffer in model.named_buffers():
        if name in buffers:
            buffer.copy_(buffers[name])
