"""Runs that count as RUNNING although their process is gone."""

import time

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from k400tiny_lib.leftovers import abandoned_marks, is_held
from k400tiny_lib.tracking.runs import ERROR_TAG, MARKS, STEP_TAG
from k400tiny_lib.tracking.server import shown_server

_KILLED = "its process was killed"
_PARENT_TAG, _SOURCE_TAG, _USER_TAG = "mlflow.parentRunId", "mlflow.source.name", "mlflow.user"
_ENVIRONMENT_TAG = "mlflow.project.env"
# `mlflow run` makes a run some seconds before the step marks it as its own, or many minutes if it
# makes an environment first.
_START_SECONDS, _ENVIRONMENT_SECONDS = 10.0, 3600.0


def end_abandoned_runs() -> list[str]:
    """End the RUNNING runs whose process was killed as FAILED, with a line each; returns their ids.

    These are runs of steps that this project directory has a mark of on this machine, their
    children, and runs that `mlflow run` made of this project in the experiment, but that no step
    has begun. A run of the last kind is RUNNING again if its step begins after all. Other
    machines' runs are left alone.
    """
    client, ended = MlflowClient(), []
    for path, content in abandoned_marks(MARKS):
        if content.get("store") != shown_server():
            continue
        try:
            run = client.get_run(path.name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                path.unlink()
            continue
        ended += _end(run) + end_running_children(run.info.run_id)
        path.unlink()
    for run in _running(client, client.get_run(_active().info.run_id).info.experiment_id):
        if _is_unbegun(run, _active()):
            ended += _end(run)
    return ended


def end_running_children(parent_id: str) -> list[str]:
    """End the children of a run that still count as RUNNING as FAILED; returns their ids.

    MLflow leaves a child RUNNING when it is interrupted while the child starts.
    """
    client = MlflowClient()
    experiment = client.get_run(parent_id).info.experiment_id
    children = _running(client, experiment, f"tags.`{_PARENT_TAG}` = '{parent_id}'")
    # A step that lives on a little ends its run itself.
    gone = [child for child in children if not is_held(MARKS / child.info.run_id)]
    return [run_id for child in gone for run_id in _end(child)]


def _active() -> Run:
    run = mlflow.active_run()
    assert run is not None
    return run


def _running(client: MlflowClient, experiment: str, condition: str = "") -> list[Run]:
    is_running = "attributes.status = 'RUNNING'"
    both = f"{is_running} and {condition}" if condition else is_running
    return list(client.search_runs([experiment], both, max_results=1000))


def _is_unbegun(run: Run, mine: Run) -> bool:
    """Whether `mlflow run` made a run of this project that has waited too long for its step."""
    tags, expected = run.data.tags, mine.data.tags
    if STEP_TAG in tags or _PARENT_TAG in tags or run.info.run_id == mine.info.run_id:
        return False
    if any(tags.get(name) != expected.get(name) for name in (_SOURCE_TAG, _USER_TAG)):
        return False
    seconds = time.time() - run.info.start_time / 1000
    return bool(seconds > (_ENVIRONMENT_SECONDS if _ENVIRONMENT_TAG in tags else _START_SECONDS))


def _end(run: Run) -> list[str]:
    """End a run unless it has ended; returns its id if it was ended here."""
    run_id = run.info.run_id
    if run.info.status != "RUNNING":
        return []
    client = MlflowClient()
    client.set_tag(run_id, ERROR_TAG, _KILLED)
    client.set_terminated(run_id, "FAILED")
    print(f"run {run_id} ({run.info.run_name}) is ended as FAILED: {_KILLED}", flush=True)
    return [run_id]
