"""Runs and metrics logs: nothing stays RUNNING, no metric is lost or sent twice."""

import json
import multiprocessing.util
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlflow
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from k400tiny_lib.config import Config, parameters_of, resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import append_entry, read_entries
from k400tiny_lib.tracking.runs import ERROR_TAG, kept_artifacts, local_copy, step_run
from k400tiny_lib.tracking.system_metrics import SystemSampler
from k400tiny_lib.tracking.uploader import MetricsUploader
from steps.log_training import log_training
from tests.conftest import REPOSITORY
from tests.helpers.training import METRICS


def test_a_finished_step_has_tags_parameters_and_the_resolved_config(store: str) -> None:
    with step_run("predict", Config(input="x")) as run:
        pass
    finished = MlflowClient().get_run(run.info.run_id)
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["k400tiny.step"] == "predict"
    assert finished.data.params["top_k"] == "5"
    resolved = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config/resolved.yaml")
    assert yaml.safe_load(resolved)["input"] == "x"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(UserError("lr: too large"), "lr: too large"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_step_that_raises_is_failed_with_its_reason(
    store: str, error: BaseException, reason: str
) -> None:
    with pytest.raises(type(error)), step_run("predict", Config()) as run:
        raise error
    finished = MlflowClient().get_run(run.info.run_id)
    assert finished.info.status == "FAILED"
    assert finished.data.tags[ERROR_TAG] == reason


def test_files_are_in_the_run_however_the_step_ends(store: str) -> None:
    for error in (KeyboardInterrupt(), RuntimeError(), UserError("x"), None):
        with (
            pytest.raises(type(error)) if error else nullcontext(),
            step_run("predict", Config(input="x")) as run,
            kept_artifacts("predictions") as folder,
        ):
            (folder / "predictions.csv").write_text("kept")
            # Also if the process is killed now:
            assert len(list(Path(".k400tiny").rglob("predictions.csv"))) == 1
            if error:
                raise error
        uri = f"runs:/{run.info.run_id}/predictions/predictions.csv"
        assert mlflow.artifacts.load_text(uri) == "kept"
        assert not list(Path(".k400tiny").rglob("predictions.csv"))


def test_files_that_the_run_cannot_take_stay_and_are_named(
    store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(*args: Any) -> None:
        raise MlflowException("API request to http://x failed")

    with step_run("predict", Config(input="x")):
        monkeypatch.setattr(mlflow, "log_artifacts", gone)
        with pytest.raises(MlflowException), kept_artifacts("predictions") as folder:
            (folder / "predictions.csv").write_text("kept")
    assert f"predictions: what there is, is in {folder}" in capsys.readouterr().err
    assert (folder / "predictions.csv").read_text() == "kept"


def test_a_step_whose_server_is_gone_fails_at_once_and_leaves_no_run_to_be_ended_at_exit(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*args: Any, **kwargs: Any) -> None:
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "0"
        raise MlflowException("API request to http://host failed with exception ...")

    def fail(error: Exception) -> None:
        with monkeypatch.context() as server, step_run("predict", Config()):
            server.setattr(MlflowClient, "set_tag", gone)
            server.setattr(MlflowClient, "set_terminated", gone)
            raise error

    with pytest.raises(UserError, match=r"^lr: too large"):
        fail(UserError("lr: too large"))
    with pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: no answer any more"):
        fail(MlflowException("API request to http://host failed with exception ..."))
    assert mlflow.active_run() is None
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


def test_parameters_that_mlflow_run_has_logged_stay_and_the_missing_ones_are_added(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MlflowClient().create_run("0")  # by `mlflow run`, or by an orchestrator without any
    MlflowClient().log_param(run.info.run_id, "top_k", "05")
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    with step_run("predict", Config(top_k=5, device="cpu")):
        pass
    params = MlflowClient().get_run(run.info.run_id).data.params
    assert params == parameters_of("predict", Config(device="cpu")) | {"top_k": "05"}


def test_main_shows_the_settled_value_of_every_parameter(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = MlflowClient().create_run("0")
    for name, value in {"data_path": "sample", "lr": "1e-1"}.items():  # -P lr=1e-1
        MlflowClient().log_param(run.info.run_id, name, value)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "")  # restored afterwards
    config = resolve("main", {"lr": "1e-1"})
    with step_run("main", config):
        pass
    params = MlflowClient().get_run(run.info.run_id).data.params
    assert params == parameters_of("main", config) | {"lr": "1e-1"}
    assert (params["num_epochs"], params["recipe"]) == (str(config.num_epochs), "sample")
    assert "recipe" not in {value for name, value in params.items() if name != "recipe"}


def test_a_step_leaves_nothing_in_the_temporary_directory(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    multiprocessing.util.get_temp_dir()  # of this process, in its former place
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    with step_run("predict", Config()) as run:
        mlflow.log_text("weights", "folder/best.pt")
        tempfile.mkdtemp()  # as MLflow does for a download from a server
    assert list((tmp_path / "tmp").iterdir()) == []
    assert tempfile.gettempdir() == str(tmp_path / "tmp")
    uri = f"runs:/{run.info.run_id}/folder/best.pt"
    assert local_copy(uri, "checkpoint").read_text() == "weights"


def test_a_step_with_worker_processes_ends_without_a_word(store: str) -> None:
    code = (
        "from k400tiny_lib.config import Config\n"
        "from k400tiny_lib.data.preparation.executors import open_executor\n"
        "from k400tiny_lib.tracking.runs import step_run\n"
        "with step_run('predict', Config()), open_executor('none', 1) as (executor, _):\n"
        "    assert executor.submit(abs, -1).result() == 1\n"
    )
    command = [sys.executable, "-c", code]
    with tempfile.TemporaryDirectory() as folder:  # short: it is part of the name of a socket
        env = os.environ | {"TMPDIR": folder, "MLFLOW_TRACKING_URI": store}
        done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert list(Path(folder).iterdir()) == []


@pytest.mark.parametrize("location", ["below a file", "read-only"])
def test_artifacts_that_cannot_be_written_are_one_line_and_the_run_fails(
    store: str, tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = "0"
    if location == "below a file":  # a directory that even root cannot make
        (tmp_path / "file").write_text("")
        experiment = MlflowClient().create_experiment("elsewhere", f"{tmp_path}/file/artifacts")
    else:

        def refuse(*args: Any, **kwargs: Any) -> None:
            raise OSError(30, "Read-only file system", "./mlruns")

        monkeypatch.setattr("mlflow.log_dict", refuse)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    with (
        pytest.raises(UserError, match=r"^MLFLOW_TRACKING_URI: the artifacts of this run belong"),
        step_run("predict", Config()),
    ):
        raise AssertionError
    [run] = MlflowClient().search_runs([experiment])
    assert run.info.status == "FAILED"
    assert "cannot be written from here" in run.data.tags[ERROR_TAG]


def test_the_password_of_a_git_project_is_removed_from_the_tags_of_mlflow(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"mlflow.source.name": "https://token:secret@host/project.git", "mlflow.user": "me"}
    run_id = MlflowClient().create_run("0", tags=tags).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    with step_run("predict", Config()):
        pass
    stored = MlflowClient().get_run(run_id).data.tags
    assert stored["mlflow.source.name"] == "https://host/project.git"
    assert stored["mlflow.user"] == "me"


def test_no_password_is_stored_in_parameters_files_or_the_reason_of_a_failure(store: str) -> None:
    uri = "s3://key:secret@bucket/clips"
    with pytest.raises(RuntimeError), step_run("prepare_data", Config(data_path=uri)) as run:
        raise RuntimeError(f"{uri} is gone")
    data = MlflowClient().get_run(run.info.run_id).data
    assert data.params["data_path"] == "s3://bucket/clips"
    assert data.tags[ERROR_TAG] == "s3://bucket/clips is gone"
    resolved = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config/resolved.yaml")
    assert "s3://bucket/clips" in resolved
    assert "secret" not in str(data.to_dictionary()) + resolved


def test_inputs_come_from_paths_and_from_runs(store: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("here")
    assert local_copy(str(tmp_path / "a.txt"), "input").read_text() == "here"
    with mlflow.start_run() as run:
        mlflow.log_text("there", "folder/b.txt")
    assert local_copy(f"runs:/{run.info.run_id}/folder/b.txt", "input").read_text() == "there"
    for missing in (str(tmp_path / "c"), f"runs:/{run.info.run_id}/c.txt", "runs:/nothing/c"):
        with pytest.raises(UserError, match=r"^input: "):
            local_copy(missing, "input")


def test_a_line_that_is_still_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append_entry(path, {"loss": 1.0}, step=1)
    complete = path.read_bytes()
    path.write_bytes(complete + complete[:10])
    [(entry, offset)] = list(read_entries(path))
    assert (entry.step, entry.metrics, offset) == (1, {"loss": 1.0}, len(complete))
    path.write_bytes(complete + complete)
    assert len(list(read_entries(path, offset))) == 1


def history(run_id: str, name: str) -> list[tuple[int, float]]:
    metrics = MlflowClient().get_metric_history(run_id, name)
    return sorted((metric.step, metric.value) for metric in metrics)


def test_metrics_logged_while_the_server_is_unreachable_arrive_once_when_it_is_back(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "metrics.jsonl"
    run_id = MlflowClient().create_run("0").info.run_id
    uploader = MetricsUploader(run_id, log)
    append_entry(log, {"loss": 3.0}, step=1)
    uploader.send()
    real = MlflowClient.log_batch

    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("unreachable")

    monkeypatch.setattr(MlflowClient, "log_batch", unreachable)
    append_entry(log, {"loss": 2.0}, step=2)
    with pytest.raises(ConnectionError):
        uploader.send()
    append_entry(log, {"loss": 1.0}, step=3)
    monkeypatch.setattr(MlflowClient, "log_batch", real)
    uploader.send()
    uploader.send()
    assert history(run_id, "loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]


def test_another_process_goes_on_where_a_killed_one_stopped(store: str, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    run_id = MlflowClient().create_run("0").info.run_id
    image = tmp_path / "a.png"
    Image.new("RGB", (20, 10)).save(image)
    append_entry(log, {"loss": 2.0}, 1, {"samples": image})
    MetricsUploader(run_id, log).send()
    append_entry(log, {"loss": 1.0}, 2, {"samples": image})
    MetricsUploader(run_id, log).send()
    (tmp_path / "metrics" / "sent.json").unlink()  # killed before it was noted
    MetricsUploader(run_id, log).send()
    assert history(run_id, "loss") == [(1, 2.0), (2, 1.0)]
    names = [file.path for file in MlflowClient().list_artifacts(run_id, "images")]
    steps = [name.split("+")[2] for name in names if name.endswith(".png")]
    assert sorted(steps) == ["1", "1", "2", "2"]  # twice only because of the deleted note


def test_more_metrics_than_one_batch_may_hold_all_arrive(store: str, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    for step in range(30):
        append_entry(log, {f"metric{number:02d}": step for number in range(50)}, step)
    run_id = MlflowClient().create_run("0").info.run_id
    MetricsUploader(run_id, log).send()
    for name in ("metric00", "metric49"):
        assert history(run_id, name) == [(step, step) for step in range(30)]


def test_system_metrics_are_kept_in_a_metrics_log_and_can_be_turned_off(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.001")
    sampler = SystemSampler("run", tmp_path / "system.jsonl")
    for _ in range(2):
        sampler.sample()
        time.sleep(0.01)
    entries = [entry for entry, _ in read_entries(tmp_path / "system.jsonl")]
    assert [entry.step for entry in entries] == [0, 1]
    share = entries[1].metrics["system/system_memory_usage_percentage"]
    assert share == pytest.approx(psutil.virtual_memory().percent, abs=20)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")
    SystemSampler("run", tmp_path / "none.jsonl").sample()
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("prefix", ["metrics", "journal"])  # now and before
def test_a_training_run_is_logged_from_its_directory(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    run_id = MlflowClient().create_run("0").info.run_id
    folder = tmp_path / f"{prefix}-{run_id}"
    folder.mkdir()
    job = {"config": Config().to_dict(), "run_id": run_id, "folder": "/elsewhere"}
    (folder / "job.json").write_text(json.dumps(job))
    error = folder / "error.txt" if prefix == "metrics" else tmp_path / f"error-{run_id}.txt"
    error.write_text("lr: too large")
    log_training([str(folder)], standalone_mode=False)
    assert "everything is logged, FAILED" in capsys.readouterr().out
    append_entry(Path(f"{folder}.jsonl"), METRICS, step=1)
    (tmp_path / "best.pt").write_bytes(b"weights")
    log_training([str(folder)], standalone_mode=False)
    assert history(run_id, "val_acc1") == [(1, 50.0)]
    failed = MlflowClient().get_run(run_id)
    assert failed.data.tags[ERROR_TAG] == "lr: too large"
    assert failed.data.metrics["best_epoch"] == 1
