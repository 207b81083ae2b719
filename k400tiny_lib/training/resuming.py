"""Which checkpoint a run continues, and whether it can."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.checkpoint import check_categories, newest_checkpoint, read_training_state

# May differ on resume without a warning: they do not affect the result, are inputs that the
# checkpoint replaces or that are checked by content, or are processes, any number of which go on.
IGNORED_ON_RESUME = {name for name, p in PARAMETERS.items() if not p.affects_result} | {
    *("data_path", "annotations", "weights", "load_model", "resume"),
    *("nproc_per_node", "nnodes"),
}


def settle_resume(config: Config) -> tuple[Config, str | None]:
    """Turn `resume` into the path of a checkpoint file, or `none`.

    Args:
        config: `resume` is `auto`, `none`, a file or a folder.

    Returns:
        The parameters with `resume` settled, and the id of the MLflow run that wrote the
        checkpoint, None without one.

    Raises:
        UserError: if there is no such checkpoint, or it cannot be resumed from.
    """
    path: Path | None = None
    if config.resume == AUTO:
        path = newest_checkpoint(Path(config.checkpoint_dir))
        if path is None:
            print(f"resume: nothing to continue in {config.checkpoint_dir}, training starts anew")
    elif config.resume != NONE:
        path = Path(config.resume)
        if path.is_dir():
            path = newest_checkpoint(path)
            if path is None:
                raise UserError(f"resume: {config.resume} holds no usable checkpoint.")
    if path is None:
        return config.replace(resume=NONE), None
    run_id = read_training_state(path, mapped=True).get("run_id")
    return config.replace(resume=str(path)), run_id


def checkpoint_to_continue(config: Config, run_id: str, process: Process) -> dict[str, Any] | None:
    """The checkpoint to go on from, the same on all processes; every one of them must call it.

    One that this very run has written says that torchrun has restarted the workers; else it is
    what `resume` names. Rank 0, which writes them, may be on another node after a restart: the
    newest that any process finds on its disk is sent to those that do not have it.

    Args:
        config: `resume` is a file or `none`.
        run_id: the MLflow run.
        process: this process.

    Raises:
        UserError: if the named checkpoint cannot be resumed from.
    """
    own = newest_checkpoint(Path(config.checkpoint_dir), run_id)
    if own is None and config.resume != NONE:
        own = Path(config.resume)
    found = None if own is None else read_training_state(own)
    if process.world_size == 1:
        return found
    ages = process.gather(None if found is None else _age(found))
    newest = max((age for age in ages if age is not None), default=None)
    if newest is None:
        return None
    if any(age != newest for age in ages):
        box = [found]
        dist.broadcast_object_list(box, src=ages.index(newest), device=process.device)
        return box[0]
    return found


def _age(checkpoint: Mapping[str, Any]) -> tuple[int, int, int, str]:
    return (
        checkpoint["finished_epochs"],
        checkpoint["batch"],
        checkpoint["updates"],
        str(checkpoint["run_id"]),
    )


def check_resumable(
    checkpoint: Mapping[str, Any], config: Config, categories: Mapping[str, int]
) -> None:
    """Refuse a checkpoint that is not of this training; print the parameters that have changed.

    Raises:
        UserError: naming the difference.
    """
    former = checkpoint["config"]
    for name in ("model", "optimizer"):
        if former.get(name) != getattr(config, name):
            raise UserError(
                f"resume: the checkpoint was trained with {name}={former.get(name)}, this run has "
                f"{name}={getattr(config, name)}. Needed: the same."
            )
    if len(checkpoint["categories"]) > len(categories):
        new = sorted(checkpoint["categories"].keys() - categories.keys())
        raise UserError(
            f"resume: the checkpoint knows classes that the data does not have, first {new[0]!r}. "
            "Needed: the same classes."
        )
    check_categories(checkpoint, categories, "resume: the checkpoint")
    changed = [
        f"{name} {former[name]} -> {value}"
        for name, value in config.to_dict().items()
        if name in former and name not in IGNORED_ON_RESUME and former[name] != value
    ]
    if changed:
        print(f"resume: changed since the checkpoint: {', '.join(changed)}", flush=True)
