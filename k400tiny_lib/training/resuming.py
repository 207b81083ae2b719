"""Resuming: which checkpoint, whether it fits, and what has changed since."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import expand
from k400tiny_lib.models.checkpoint import (
    BEST,
    check_categories,
    newest_checkpoint,
    read_training_state,
)
from k400tiny_lib.training.reporting import add_earlier_epochs
from k400tiny_lib.training.state import TrainState, load_state

# May differ on resume without a warning: they do not affect the result, are inputs that the
# checkpoint replaces or that are checked by content, or set the number of processes.
IGNORED_ON_RESUME = {name for name, p in PARAMETERS.items() if not p.affects_result} | {
    *("data_path", "annotations", "weights", "load_model", "resume"),
    *("nproc_per_node", "nnodes"),
}


def resolve_checkpoint_paths(config: Config, run_id: str) -> tuple[Config, str | None]:
    """Turn `checkpoint_dir` into a directory, and `resume` into a checkpoint file or `none`.

    `checkpoint_dir=auto` is named after the MLflow run; `resume` may be a directory.

    Returns:
        The parameters with both resolved, and the id of the MLflow run that wrote the checkpoint,
        None without one.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be resumed from.
    """
    auto_dir = config.checkpoint_dir == AUTO
    folder = Path("checkpoints", run_id) if auto_dir else Path(expand(config.checkpoint_dir))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"checkpoint_dir: {folder} cannot be made: {error.strerror}.") from None
    config = config.replace(checkpoint_dir=str(folder))
    if config.resume == NONE:
        return config, None
    path = folder if config.resume == AUTO else Path(config.resume)
    checkpoint = newest_checkpoint(path) if path.is_dir() else path
    if checkpoint is not None:
        former_run = read_training_state(checkpoint, mapped=True).get("run_id")
        return config.replace(resume=str(checkpoint)), former_run
    if config.resume != AUTO:
        raise UserError(f"resume: {config.resume} holds no usable checkpoint.")
    print(f"resume: nothing to continue in {folder}, training starts from scratch")
    return config.replace(resume=NONE), None


def resume(
    state: TrainState, run_id: str, metrics_log: Path, categories: Mapping[str, int]
) -> None:
    """Continue from a checkpoint, if there is one; every process must call it.

    The epochs before the checkpoint are added to the metrics log.

    Raises:
        UserError: if the checkpoint cannot be read or is of another training.
    """
    config, process, folder = state.config, state.process, Path(state.config.checkpoint_dir)
    checkpoint = read_resume_checkpoint(config, run_id, process)
    if checkpoint is None:
        return
    check_resumable(checkpoint, config, categories)
    load_state(state, checkpoint, "resume: the checkpoint")
    if process.is_main:
        if changes := changes_since(checkpoint, config, process.world_size):
            print(f"resume: changed since the checkpoint: {', '.join(changes)}", flush=True)
        add_earlier_epochs(metrics_log, checkpoint)
        former_best = Path(config.resume).with_name(BEST)
        if config.resume != NONE and former_best.exists() and not (folder / BEST).exists():
            shutil.copyfile(former_best, folder / BEST)
        print(
            f"resuming run {checkpoint['run_id']} in epoch {state.epoch + 1}, after batch "
            f"{state.batch}" + f" (restart {process.restarts})" * bool(process.restarts),
            flush=True,
        )
    [has_best] = process.any_rank(process.is_main and (folder / BEST).exists())
    if not has_best:  # the best of the epochs to come
        state.best_epoch, state.best_val_acc1 = 0, -1.0


def read_resume_checkpoint(config: Config, run_id: str, process: Process) -> dict[str, Any] | None:
    """The checkpoint to resume from, the same on all processes; every one of them must call it.

    After a restart by torchrun it is the newest one of this run, else the one that `resume` names.
    Rank 0, which writes them, may be on another node after a restart, so the newest on the disk of
    any process is sent to those that do not have it.

    Raises:
        UserError: if the named checkpoint cannot be resumed from.
    """
    path = newest_checkpoint(Path(config.checkpoint_dir), run_id)
    if path is None and config.resume != NONE:
        path = Path(config.resume)
    checkpoint = None if path is None else read_training_state(path)
    if process.world_size == 1:
        return checkpoint
    age_keys = ("finished_epochs", "batch", "updates", "run_id")
    ages = process.gather(None if checkpoint is None else [checkpoint[key] for key in age_keys])
    newest = max((age for age in ages if age is not None), default=None)
    if newest is None or all(age == newest for age in ages):
        return checkpoint
    box = [checkpoint]
    dist.broadcast_object_list(box, src=ages.index(newest), device=process.device)
    return box[0]


def check_resumable(
    checkpoint: Mapping[str, Any], config: Config, categories: Mapping[str, int]
) -> None:
    """Refuse a checkpoint of another model, optimizer or classes.

    Raises:
        UserError: naming the difference.
    """
    before = checkpoint["config"]
    for name in ("model", "optimizer"):
        if before.get(name) != getattr(config, name):
            raise UserError(
                f"resume: the checkpoint was trained with {name}={before.get(name)}, this run has "
                f"{name}={getattr(config, name)}. Needed: the same."
            )
    if len(checkpoint["categories"]) > len(categories):
        new = sorted(checkpoint["categories"].keys() - categories.keys())
        raise UserError(
            f"resume: the checkpoint has classes that the data does not have, first {new[0]!r}. "
            "Needed: the same classes."
        )
    check_categories(checkpoint, categories, "resume: the checkpoint")


def changes_since(checkpoint: Mapping[str, Any], config: Config, world_size: int) -> list[str]:
    """What affects the result and is not as in the checkpoint, each as `name before -> now`."""
    before = checkpoint["config"]
    changes = [
        f"{name} {before[name]} -> {value}"
        for name, value in config.to_dict().items()
        if name in before and name not in IGNORED_ON_RESUME and before[name] != value
    ]
    former_size = len(checkpoint["processes"])
    if former_size != world_size:
        changes.append(f"world size {former_size} -> {world_size}")
    return changes
