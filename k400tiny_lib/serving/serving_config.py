"""The configuration of the served video classifier, checked when the model is loaded."""

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from k400tiny_lib.errors import UserError, listed

AUTO = "auto"
# Seconds after which MLflow's scoring server answers without the model, and its default.
_TIMEOUT_VARIABLE, _TIMEOUT = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", 60.0
_SHARE = 2 / 3  # of it for the model; the rest is for reading the request
# A process of `mlflow models serve` has both; MLflow drops the keys that it does not know.
_SERVER_VARIABLE, _CONFIG_VARIABLE = "__pyfunc_model_path__", "SERVING_MODEL_CONFIG"


class _Setting(NamedTuple):
    default: Any
    fits: Callable[[Any], bool]
    needed: str


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _whole(default: int, least: int = 1) -> _Setting:
    needed = f"a whole number, at least {least}"
    return _Setting(default, lambda value: _is_whole(value, least), needed)


def _is_root(value: Any) -> bool:
    try:
        return isinstance(value, str) and (not value or Path(value).is_dir())
    except (OSError, ValueError):  # too long, a null byte
        return False


_SETTINGS = {
    # Directory of the files that a request may name by `path`; without one, `path` is refused.
    "video_root": _Setting("", _is_root, "a directory that exists, or nothing"),
    "num_threads": _Setting(
        AUTO, lambda value: value == AUTO or _is_whole(value, 1), f"{AUTO} or a whole number from 1"
    ),
    "device": _Setting(AUTO, lambda value: value in (AUTO, "cpu", "cuda"), f"{AUTO}, cpu or cuda"),
    "max_videos": _whole(16),
    "max_megabytes": _Setting(
        64, lambda value: _is_number(value) and value > 0, "a number above 0"
    ),
    "max_frames": _whole(36_000, least=2),  # of a video: 20 minutes at 30 a second
    "max_pixels": _whole(3840 * 2160),  # of a frame
    # Of all frames that are decoded for a request: 30 s of 4K at 60 a second.
    "max_total_pixels": _whole(15_000_000_000),
    "max_seconds": _Setting(  # for a request
        AUTO,
        lambda value: value == AUTO or (_is_number(value) and value > 0),
        f"{AUTO} (two thirds of {_TIMEOUT_VARIABLE}) or a number above 0",
    ),
    "max_bad_frames": _Setting(  # share of a video's frames that may be damaged
        0.1, lambda value: _is_number(value) and 0 <= value <= 1, "a number from 0 to 1"
    ),
}
# The defaults of model_config. load_model(..., model_config={...}) overrides them and, for a served
# model, the environment variable SERVING_MODEL_CONFIG with the same as JSON.
DEFAULTS: dict[str, Any] = {name: setting.default for name, setting in _SETTINGS.items()}


def checked_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a model with defaults for what is not given.

    Args:
        values: the keys of `DEFAULTS`, or some of them.

    Returns:
        A value for each key; `max_seconds` is a number.

    Raises:
        UserError: if a key is unknown or a value not allowed.
    """
    for name in [*values, *_served_keys()]:
        if name not in _SETTINGS:
            raise UserError(f"{name}: no such key. Needed: {listed(list(_SETTINGS), 20)}.")
    for name, value in values.items():
        if not _SETTINGS[name].fits(value):
            what = "does not exist" if name == "video_root" and value else "is not allowed"
            shown = f"{value!r}"[:100]
            raise UserError(f"{name}: {shown} {what}. Needed: {_SETTINGS[name].needed}.")
    config = DEFAULTS | dict(values)
    if config["max_seconds"] == AUTO:
        config["max_seconds"] = _SHARE * float(os.environ.get(_TIMEOUT_VARIABLE) or _TIMEOUT)
    return config


def is_server() -> bool:
    """Whether this process is one of `mlflow models serve`."""
    return _SERVER_VARIABLE in os.environ


def _served_keys() -> list[str]:
    """The keys that a scoring server was given, with those that MLflow has dropped."""
    if not is_server():
        return []
    served = json.loads(os.environ.get(_CONFIG_VARIABLE) or "{}")
    return list(served) if isinstance(served, dict) else []
