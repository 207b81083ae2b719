"""Resuming: which checkpoint, whether it fits, and what has changed since."""

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as dist

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config
from k400tiny_lib.console import say, warn
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import atomic_write, writing_to
from k400tiny_lib.models.checkpoint import (
    BEST,
    check_categories,
    newest_checkpoint,
    read_checkpoint,
    read_training_state,
)
from k400tiny_lib.models.weights import class_count
from k400tiny_lib.training.folder import (
    NOT_IDENTITY,
    Hold,
    Training,
    clear_for,
    resolve_checkpoint_dir,
)
from k400tiny_lib.training.reporting import add_earlier_epochs
from k400tiny_lib.training.state import TrainState, load_state

# May differ on resume without a warning: the number of processes has its own line.
IGNORED_ON_RESUME = NOT_IDENTITY


def resolve_checkpoint_paths(
    config: Config,
    run_id: str,
    categories: Mapping[str, int] | None = None,
    hold: Hold | None = None,
) -> tuple[Config, str | None]:
    """Turn `checkpoint_dir` into a directory, and `resume` into a checkpoint file or `none`.

    Args:
        config: the parameters of train.
        run_id: the MLflow run.
        categories: class ids of the data by label, which the checkpoint must fit; None for any.
        hold: the locked directory; None for one that nobody has trained in.

    Returns:
        The parameters with both resolved, and the id of the MLflow run that wrote the checkpoint,
        None without one.

    Raises:
        UserError: if there is no such checkpoint, it cannot be resumed from, or the directory holds
            the checkpoints of another training that has not ended.
    """
    config = resolve_checkpoint_dir(config, run_id)
    config, former_run = _resolve_resume(config, categories)
    if hold is None or not hold.joined:
        clear_for(config, run_id, former_run, hold.former if hold else Training())
    return config, former_run


def _resolve_resume(
    config: Config, categories: Mapping[str, int] | None
) -> tuple[Config, str | None]:
    folder = Path(config.checkpoint_dir)
    if config.resume == NONE:
        return config, None
    path = folder if config.resume == AUTO else Path(config.resume)
    checkpoint = newest_checkpoint(path) if path.is_dir() else path
    if checkpoint is not None:
        content = read_training_state(checkpoint, mapped=True)
        if categories is not None:
            check_resumable(content, config, categories)
        return config.replace(resume=str(checkpoint)), content.get("run_id")
    if config.resume != AUTO:
        raise UserError(f"resume: {config.resume} holds no usable checkpoint.")
    say("resume", f"nothing to continue in {folder}, training starts from scratch")
    return config.replace(resume=NONE), None


def fetch_best(resume_uri: str, folder: Path, fetch: Callable[[str, str], Path]) -> None:
    """Bring the best.pt next to a remote last.pt into the directory of the training, if it exists.

    Args:
        resume_uri: the parameter `resume` as the user gave it.
        folder: where training writes.
        fetch: (URI, parameter) -> local path.
    """
    if ":/" not in resume_uri or not resume_uri.endswith(".pt") or (folder / BEST).exists():
        return
    with suppress(UserError):  # without one, the best starts anew, and `resume` says so
        _copy(fetch(f"{resume_uri.rpartition('/')[0]}/{BEST}", "resume"), folder / BEST)


def _copy(source: Path, target: Path) -> None:
    with writing_to(target.parent, "checkpoint_dir"), atomic_write(target) as part:
        shutil.copyfile(source, part)


def resume(
    state: TrainState, run_id: str, metrics_log: Path, categories: Mapping[str, int]
) -> None:
    """Continue from a checkpoint, if there is one; every process must call it.

    The epochs before the checkpoint are added to the metrics log.

    Raises:
        UserError: if the checkpoint cannot be read or is of another training, or if there is
            nothing left to train and no best.pt.
    """
    config, process = state.config, state.process
    checkpoint = read_resume_checkpoint(config, run_id, process)
    if checkpoint is None:
        return
    check_resumable(checkpoint, config, categories)
    load_state(state, checkpoint, "resume: the checkpoint")
    if process.is_main:
        if changes := changes_since(checkpoint, config, process.world_size):
            say("resume", f"changed since the checkpoint: {', '.join(changes)}")
        with writing_to(Path(config.checkpoint_dir), "checkpoint_dir"):
            add_earlier_epochs(metrics_log, checkpoint)
        where = f"in epoch {state.epoch + 1}, after batch {state.batch}"
        print(
            f"resuming run {checkpoint['run_id']} "
            + ("with nothing left to train" if state.finished else where)
            + f" (restart {process.restarts})" * bool(process.restarts),
            flush=True,
        )
    [has_best] = process.any_rank(process.is_main and _keep_best(checkpoint, config))
    if has_best:
        return
    if state.finished:
        raise UserError(
            f"resume: {config.resume} has {state.epoch} finished epochs, so nothing is left to "
            f"train for num_epochs={config.num_epochs}, and its {BEST} is not beside it. Needed: "
            f"more epochs, or that {BEST} in {config.checkpoint_dir}."
        )
    if process.is_main and state.best_epoch:
        say(
            "resume",
            f"the {BEST} of epoch {state.best_epoch} (val_acc1 {state.best_val_acc1:.1f} %) is not "
            f"beside the checkpoint; the best of the epochs from {state.epoch + 1} on counts",
        )
    state.best_epoch, state.best_val_acc1 = 0, -1.0


def _keep_best(checkpoint: Mapping[str, Any], config: Config) -> bool:
    """Whether checkpoint_dir has the best.pt of the resumed training; copied there if need be."""
    target = Path(config.checkpoint_dir, BEST)
    if _is_best_of(target, checkpoint):
        return True
    former = Path(config.resume).with_name(BEST)
    if config.resume == NONE or not _is_best_of(former, checkpoint):
        return False
    _copy(former, target)
    return True


def _is_best_of(path: Path, checkpoint: Mapping[str, Any]) -> bool:
    """Whether a file is the best.pt that a checkpoint of training claims as its best."""
    if not path.exists():
        return False
    try:
        best = read_checkpoint(path, "resume", mapped=True)
    except UserError as error:
        warn(str(error))
        return False
    epoch, score, run_id = best["epoch"], best.get("val_acc1"), best.get("run_id")
    # Checkpoints of older versions lack the run of their best.
    if run_id == (checkpoint.get("best_run") or run_id) and epoch == checkpoint["best_epoch"]:
        return score in (None, checkpoint["best_val_acc1"])
    # Written after this checkpoint: that epoch is trained again.
    return bool(run_id == checkpoint["run_id"] and epoch > checkpoint["finished_epochs"])


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
    """Refuse a checkpoint of another model, optimizer or classes, or without the scale of fp16.

    One whose other layers have learned has another optimizer.

    Raises:
        UserError: naming the difference.
    """
    before = checkpoint["config"]
    for name in ("model", "optimizer", "train_layers"):
        # Checkpoints of older versions lack parameters that are newer than they.
        former = before.get(name, PARAMETERS[name].default)
        if former != getattr(config, name):
            raise UserError(
                f"resume: the checkpoint was trained with {name}={former}, this run has "
                f"{name}={getattr(config, name)}. Needed: the same."
            )
    if config.amp == "fp16" and not checkpoint["scaler"]:
        raise UserError(
            f"resume: the checkpoint was trained with amp={before.get('amp')} and lacks the scale "
            "of the gradients that amp=fp16 continues with. Needed: amp=auto, bf16 or off, or "
            "load_model=<it> to start again from its weights."
        )
    if len(checkpoint["categories"]) > len(categories):
        new = sorted(checkpoint["categories"].keys() - categories.keys())
        raise UserError(
            f"resume: the checkpoint has classes that the data does not have, first {new[0]!r}. "
            "Needed: the same classes."
        )
    check_categories(checkpoint, categories, "resume: the checkpoint")
    outputs = class_count(config.model, checkpoint["model"])
    needed = max(categories.values(), default=-1) + 1 if config.num_classes == AUTO else None
    if outputs != (needed or config.num_classes):
        raise UserError(
            f"resume: the checkpoint's head has {outputs} classes, this run's has "
            f"{needed or config.num_classes} (num_classes={config.num_classes}). Needed: the same "
            "num_classes, or load_model=<it> to start again from its weights."
        )


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
