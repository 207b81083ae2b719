"""Inputs that a single step takes from an earlier run, where they are `auto`."""

import re
import time
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config
from k400tiny_lib.config.steps import check_together
from k400tiny_lib.console import say
from k400tiny_lib.errors import UserError, hide_passwords
from k400tiny_lib.files import is_remote, problem_of
from k400tiny_lib.tracking.runs import (
    ANNOTATIONS_TAG,
    DATA_PATH_TAG,
    STEP_TAG,
    active_run_id,
    local_copy,
    log_parameters,
)

_ARTIFACTS = {"prepare_data": "annotations/annotations.json", "train": "checkpoints/best.pt"}
_RUN_URI = re.compile(r"runs:/+([^/]+)/.*")


def settle_inputs(step: str, config: Config) -> Config:
    """Replace `auto` in checkpoint, annotations and data_path by what an earlier run made.

    The checkpoint is that of the newest finished train in the experiment, nested ones included. The
    annotations are those that it was trained with; for train itself, and where that is not known,
    those of the newest finished prepare_data. data_path is where the clips of these annotations
    are. A line for each says what was taken. export_onnx does without data where it finds none.

    Args:
        step: the step of the active run.
        config: its parameters.

    Raises:
        UserError: if there is no such run, or its clips are not on this machine.
    """
    settled = config
    if config.checkpoint == AUTO:
        settled = settled.replace(checkpoint=_newest("train", "checkpoint"))
    autos = {n for n, p in PARAMETERS.items() if step in p.auto_in and getattr(config, n) == AUTO}
    if autos - {"checkpoint"}:
        settled = _settle_data(step, settled)
    if settled != config:
        check_together(settled, step)
        log_parameters(step, settled)
    if step == "train":
        tags = {ANNOTATIONS_TAG: settled.annotations, DATA_PATH_TAG: settled.data_path}
        mlflow.set_tags({name: hide_passwords(_absolute(uri)) for name, uri in tags.items()})
    return settled


def _settle_data(step: str, config: Config) -> Config:
    training = None if step == "train" else _training_run(config.checkpoint)
    trained_with = training.data.tags.get(ANNOTATIONS_TAG) if training else None
    annotations = config.annotations
    if annotations == AUTO and trained_with:
        annotations = _say(
            "annotations", trained_with, "those that the checkpoint was trained with"
        )
    elif annotations == AUTO and step == "export_onnx":
        return _without_data(config, "none that the model was trained with is known")
    elif annotations == AUTO:
        annotations = _newest("prepare_data", "annotations")
    data_path = config.data_path
    if data_path == AUTO and annotations != NONE:
        prepared = _run_of(annotations)
        runs = [training if annotations == trained_with else None, prepared]
        places = [run.data.tags.get(DATA_PATH_TAG) for run in runs if run is not None]
        present = [place for place in places if place and _exists(place)]
        if not present and config.annotations == AUTO and step == "export_onnx":
            return _without_data(config, "their clips are not on this machine")
        if not present:
            where = f"; {places[0]} is not there" if any(places) else ""
            raise UserError(
                f"data_path: it is not known where the clips of {annotations} are{where}. "
                "Needed: -P data_path=..., or prepare_data once more."
            )
        data_path = _say("data_path", present[0], "the clips of the annotations")
    return config.replace(annotations=annotations, data_path=data_path)


def _without_data(config: Config, reason: str) -> Config:
    say("annotations", f"none are used, {reason}")
    return config.replace(annotations=NONE)


def _newest(step: str, parameter: str) -> str:
    """The artifact of the newest finished run of a step in the active run's experiment."""
    client, path = MlflowClient(), _ARTIFACTS[step]
    experiment = client.get_experiment(client.get_run(active_run_id()).info.experiment_id)
    runs = client.search_runs(
        [experiment.experiment_id],
        f"tags.`{STEP_TAG}` = '{step}' and attributes.status = 'FINISHED'",
        order_by=["attributes.end_time DESC"],
    )
    for run in runs:
        if _has_artifact(run, path):
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.end_time / 1000))
            uri = f"runs:/{run.info.run_id}/{path}"
            return _say(parameter, uri, f"of the newest {step}, {run.info.run_name}, {when}")
    raise UserError(
        f"{parameter}: no finished run of {step} in the experiment {experiment.name}. Needed: "
        f"`mlflow run . -e {step}` first, or -P {parameter}=..."
    )


def _has_artifact(run: Run, path: str) -> bool:
    folder = path.rpartition("/")[0]
    try:
        files = mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path=folder)
    except Exception:  # every artifact store raises its own
        return False
    return path in {file.path for file in files}


def _training_run(checkpoint: str) -> Run | None:
    """The run that wrote a checkpoint, if this store has it."""
    if checkpoint == NONE:
        return None
    if _RUN_URI.fullmatch(checkpoint):
        return _run_of(checkpoint)
    from k400tiny_lib.models.checkpoint import read_checkpoint  # imports torch

    content = read_checkpoint(local_copy(checkpoint, "checkpoint"), "checkpoint")
    return _run_of(f"runs:/{content.get('run_id')}/")


def _run_of(uri: str) -> Run | None:
    """The run that an artifact URI names, if it names one of this store."""
    match = _RUN_URI.fullmatch(uri)
    try:
        return MlflowClient().get_run(match[1]) if match else None
    except MlflowException:
        return None


def _exists(data_path: str) -> bool:
    return is_remote(data_path) or not problem_of(Path(data_path))


def _absolute(uri: str) -> str:
    is_uri = re.match("[a-z][a-z0-9+.-]*:/", uri)
    return uri if is_uri else str(Path(uri).absolute())


def _say(parameter: str, value: str, what: str) -> str:
    say(parameter, f"{hide_passwords(value)} ({what})")
    return value
