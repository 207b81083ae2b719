"""Checkpoints: written atomically, read without running code."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.model import build_model, class_count, load_backbone

BEST = "best.pt"
LAST = "last.pt"
BEST_KEYS = ("model", "epoch", "config", "categories")


def write_atomically(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash leaves either the former file or the new one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    with partial.open("wb") as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_checkpoint(path: Path, parameter: str) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`, on the CPU.

    Raises:
        UserError: if the file is missing, truncated, would run code, or is no checkpoint of ours.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0][:150] if str(error).strip() else "no content"
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
        UserError: if the weights do not fit the checkpoint's own description.
    """
    try:
        config = Config(**checkpoint["config"])
        model = build_model(config.model, class_count(config.model, checkpoint["model"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{parameter}: the checkpoint's config is not ours ({error}).") from None
    if not load_backbone(model, checkpoint["model"], f"{parameter}: the checkpoint"):
        raise UserError(f"{parameter}: the checkpoint's head does not fit its categories.")
    return model.eval(), config


def check_categories(checkpoint: Mapping[str, Any], categories: Mapping[str, int]) -> None:
    """Refuse a checkpoint whose classes are not those of the data.

    Raises:
        UserError: naming the first label that differs.
    """
    known = checkpoint["categories"]
    differing = sorted(label for label in categories if known.get(label) != categories[label])
    if differing:
        raise UserError(
            f"checkpoint: it does not know {len(differing)} of the data's {len(categories)} "
            f"classes by the same id, first {differing[0]!r}. Needed: a checkpoint trained on "
            "these labels."
        )
