"""Checkpoints: written atomically, read without running code."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from k400tiny_lib.config import Config, read_config
from k400tiny_lib.console import warn
from k400tiny_lib.data.annotations import class_names_by_id, unknown_labels
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import atomic_write
from k400tiny_lib.models.weights import build_model, check_finite, class_count, load_weights

BEST = "best.pt"
LAST = "last.pt"
PREVIOUS = "previous.pt"
BEST_KEYS = ("model", "epoch", "config", "categories")


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the former file or the new one."""
    with atomic_write(path) as part:
        _save(content, part)


def write_last(content: Mapping[str, Any], folder: Path) -> None:
    """Write last.pt and keep the former one as previous.pt.

    A crash at any moment leaves at least one of them whole.
    """
    last = folder / LAST
    with atomic_write(last) as part:
        _save(content, part)
        if last.exists():
            last.replace(folder / PREVIOUS)


def _save(content: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())  # on disk before it gets its name
    except RuntimeError as error:
        # torch.save ends a file that it could not write, and hides the reason behind that failure.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def newest_checkpoint(folder: Path, run_id: str | None = None) -> Path | None:
    """The newest usable checkpoint of a folder; a damaged one is named in a warning and skipped.

    Args:
        folder: where training writes.
        run_id: the MLflow run that must have written it; None for any.
    """
    for path in (folder / LAST, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            content = read_training_state(path, mapped=True)
        except UserError as error:
            warn(f"skipped, {error}")
            continue
        if run_id in (None, content.get("run_id")):
            return path
    return None


def run_of(path: Path) -> str:
    """The MLflow run that wrote a checkpoint; "" if that cannot be read."""
    try:
        return str(read_checkpoint(path, "checkpoint", mapped=True).get("run_id", ""))
    except UserError:
        return ""


def read_training_state(path: Path, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint that training can be resumed from.

    Raises:
        UserError: as for `read_checkpoint`, for weights that are not finite, and for a best.pt,
            which holds no training state.
    """
    content = read_checkpoint(path, "resume", mapped=mapped)
    if "processes" not in content:
        raise UserError(
            f"resume: {path} holds no training state. Needed: a {LAST} or its folder; "
            "load_model starts a new training from these weights."
        )
    for part in ("raw_model", "model"):
        check_finite(content.get(part, {}), f"resume: {path}")
    return content


def read_checkpoint(path: Path, parameter: str, *, mapped: bool = False) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, on the CPU.

    Args:
        path: the file.
        parameter: the parameter that named it, for the message.
        mapped: map the tensors: they are read from the file when they are used.

    Raises:
        UserError: if the file is missing, truncated, would run code, or is no checkpoint of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = one_line(error, 150) if str(error).strip() else "no content"
        raise UserError(
            f"{parameter}: {path} is not a readable checkpoint ({reason}). "
            "Needed: a best.pt of train."
        ) from None
    missing = [key for key in BEST_KEYS if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(
            f"{parameter}: {path} has no {missing[0]!r}. Needed: a best.pt of train with "
            f"{', '.join(BEST_KEYS)}."
        )
    return dict(content)


def model_of(checkpoint: Mapping[str, Any], parameter: str) -> tuple[nn.Module, Config]:
    """Rebuild the model of a checkpoint, in evaluation mode.

    Returns:
        The model, and the parameters that it was trained with.

    Raises:
        UserError: if the checkpoint's config is not valid or does not fit its weights.
    """
    try:
        config = read_config(checkpoint["config"])
        model = build_model(config.model, class_count(config.model, checkpoint["model"]))
    except (TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"{parameter}: the checkpoint's config is not ours ({error}).") from None
    if not load_weights(model, checkpoint["model"], f"{parameter}: the checkpoint"):
        raise UserError(f"{parameter}: the checkpoint's head does not fit its categories.")
    return model.eval(), config


def check_categories(
    checkpoint: Mapping[str, Any], categories: Mapping[str, int], origin: str = "checkpoint: it"
) -> None:
    """Refuse a checkpoint that does not know all classes of the data by the same ids.

    Raises:
        UserError: beginning with `origin`, and naming the first label that differs.
    """
    known = checkpoint["categories"]
    class_names = class_names_by_id(known, max(known.values(), default=-1) + 1)
    if unknown := unknown_labels(categories, class_names):
        raise UserError(
            f"{origin} does not know {len(unknown)} of the data's {len(categories)} "
            f"classes by the same id, first {unknown[0]!r}. Needed: a checkpoint trained on "
            "these labels."
        )
