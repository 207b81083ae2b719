"""Runs of killed processes are ended by the next `main`; those that live are not."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlflow
import pytest
from mlflow import MlflowClient

from k400tiny_lib.config import Config
from k400tiny_lib.leftovers import Mark
from k400tiny_lib.tracking.runs import ERROR_TAG, MARKS, step_run
from k400tiny_lib.workflow.abandoned import end_abandoned_runs, end_running_children
from tests.conftest import REPOSITORY

STEP = """
import sys, time
from k400tiny_lib.config import Config
from k400tiny_lib.tracking.runs import step_run
with step_run("predict", Config()) as run:
    print(run.info.run_id, flush=True)
    time.sleep(600)
"""


@contextmanager
def living_step() -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A step in another process: its run and the process."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", STEP]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def status(run_id: str) -> str:
    return str(MlflowClient().get_run(run_id).info.status)


def test_a_run_is_ended_when_its_process_was_killed_and_not_before(
    store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    with step_run("main", Config()), living_step() as (run_id, process):
        tags = {"mlflow.parentRunId": run_id}
        child = client.create_run("0", tags=tags).info.run_id  # that had no time to begin
        assert end_abandoned_runs() == []
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert end_abandoned_runs() == [run_id, child]
        assert end_abandoned_runs() == []
        assert f"run {run_id} (" in capsys.readouterr().out
    assert status(run_id) == status(child) == "FAILED"
    assert client.get_run(run_id).data.tags[ERROR_TAG] == "its process was killed"
    assert list(MARKS.iterdir()) == []


def test_a_run_of_another_machine_or_store_is_left_alone(store: str) -> None:
    with step_run("main", Config()), living_step() as (run_id, process):
        process.kill()
        process.wait()
        mark = MARKS / run_id
        content = json.loads(mark.read_text())
        for name in ("host", "store"):
            mark.write_text(json.dumps(content | {name: "elsewhere"}))
            assert end_abandoned_runs() == []
        mark.write_text("")  # just made, not yet locked
        assert end_abandoned_runs() == []
        mark.write_text(json.dumps(content))
        assert end_abandoned_runs() == [run_id]


def test_a_run_that_the_store_has_lost_is_forgotten(store: str) -> None:
    with step_run("main", Config()), living_step() as (run_id, process):
        process.kill()
        process.wait()
        (MARKS / run_id).rename(MARKS / ("0" * 32))
        assert end_abandoned_runs() == []
        assert not (MARKS / ("0" * 32)).exists()
        assert status(run_id) == "RUNNING"


def made_by_mlflow(**changes: str) -> str:
    """A run such as `mlflow run` makes, of the same project and user as the active one."""
    active = mlflow.active_run()
    assert active is not None
    own = {n: active.data.tags[n] for n in ("mlflow.source.name", "mlflow.user")}
    start = int((time.time() - 60) * 1000)
    tags = own | {n.replace("_", "."): v for n, v in changes.items()}
    return str(MlflowClient().create_run("0", start_time=start, tags=tags).info.run_id)


def test_a_run_that_no_step_began_is_ended_unless_it_may_be_another_s(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with step_run("main", Config()):
        left = made_by_mlflow()
        others = [
            made_by_mlflow(mlflow_source_name="another checkout"),
            made_by_mlflow(mlflow_user="somebody else"),
            made_by_mlflow(mlflow_parentRunId="0123"),
            made_by_mlflow(mlflow_project_env="conda"),  # which takes minutes to make
            made_by_mlflow(k400tiny_step="train"),  # of another machine: there is no mark
        ]
        just_made = MlflowClient().create_run("0").info.run_id
        assert end_abandoned_runs() == [left]
        assert {status(run_id) for run_id in [*others, just_made]} == {"RUNNING"}
    # It only was slow: its step begins after all, and nothing is left of the mistake.
    monkeypatch.setenv("MLFLOW_RUN_ID", left)
    with step_run("predict", Config()):
        assert status(left) == "RUNNING"
    run = MlflowClient().get_run(left)
    assert run.info.status == "FINISHED"
    assert ERROR_TAG not in run.data.tags


def test_a_project_that_cannot_be_written_to_runs_without_marks(store: str) -> None:
    MARKS.parent.mkdir()
    MARKS.write_text("a file in the place of the directory")
    with step_run("main", Config()) as run:
        assert end_abandoned_runs() == []
    assert status(run.info.run_id) == "FINISHED"


def test_children_left_running_are_ended(store: str) -> None:
    with mlflow.start_run() as parent:
        client = MlflowClient()
        tags = {"mlflow.parentRunId": parent.info.run_id}
        left = client.create_run(parent.info.experiment_id, tags=tags)
        other = client.create_run(parent.info.experiment_id)
        alive = client.create_run(parent.info.experiment_id, tags=tags)
        mark = Mark(MARKS / alive.info.run_id, {})
        assert end_running_children(parent.info.run_id) == [left.info.run_id]
    mark.remove()
    assert status(left.info.run_id) == "FAILED"
    assert status(other.info.run_id) == status(alive.info.run_id) == "RUNNING"
