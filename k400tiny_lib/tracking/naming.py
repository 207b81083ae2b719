"""Names of runs: readable ones in place of those that MLflow draws; a user's name stays."""

import os
import re
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES

from k400tiny_lib.config import Config
from k400tiny_lib.config.parameters import SAMPLE
from k400tiny_lib.errors import hide_passwords

NAME_TAG = "mlflow.runName"
NAME_VARIABLE = "MLFLOW_RUN_NAME"
NOTE_TAG = "mlflow.note.content"  # shown as the run's description
_PARENT_TAG = "mlflow.parentRunId"
_DRAWN = re.compile(
    f"({'|'.join(map(re.escape, _GENERATOR_PREDICATES))})-"
    f"({'|'.join(map(re.escape, _GENERATOR_NOUNS))})-[0-9]{{1,4}}"
)


def initial_name(step: str, config: Config) -> str:
    """The name of a step's run until it has a result: MLFLOW_RUN_NAME, else what it works on."""
    if name := os.environ.get(NAME_VARIABLE):
        return name
    subject = {
        "main": config.model,
        "tune": config.model,
        "prepare_data": _last_part(config.data_path),
        "train": config.model,
        "evaluate": config.split,
        "predict": _last_part(config.input),
        "promote": config.version,
    }.get(step)
    first = {"main": _last_part(config.data_path), "tune": f"tune {_last_part(config.data_path)}"}
    return " · ".join(filter(None, (first.get(step, step), subject)))


def name_run(run: Run, step: str, config: Config, result: str = "") -> None:
    """Give a run a readable name, unless the user gave it one.

    Args:
        run: the active run; a nested one is named after its step, as main names it in the end.
        step, config: what it runs.
        result: what is appended to the name when the step is done.
    """
    name = MlflowClient().get_run(run.info.run_id).info.run_name or ""
    if _PARENT_TAG in run.data.tags:
        better = step
    else:
        better = initial_name(step, config)
        if result and NAME_VARIABLE not in os.environ:
            if name == better:
                name = ""
            better = f"{better} · {result}"
    if not name or is_drawn(name):
        mlflow.set_tag(NAME_TAG, better)


def is_drawn(name: str) -> bool:
    """Whether MLflow has drawn this name of a run at random: "merciful-fox-123"."""
    return _DRAWN.fullmatch(name) is not None


def _last_part(path: str) -> str:
    if path == SAMPLE:
        return path
    name = hide_passwords(path).rstrip("/").rpartition("/")[2]
    return Path(path).absolute().name if name in ("", ".", "..") else name
