"""A real tracking server that is killed while training: nothing stops, nothing is lost."""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from k400tiny_lib.metrics_log import append_entry
from k400tiny_lib.tracking.runs import ERROR_TAG
from k400tiny_lib.tracking.training_log import TrainingLog
from steps.log_training import log_training
from tests.conftest import REPOSITORY
from tests.helpers.store import tracking
from tests.helpers.tracking_server import Server
from tests.helpers.training import annotate


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    started = Server(tmp_path)
    started.start()
    try:
        started.wait()
        with tracking(started.uri):
            yield started
    finally:
        started.kill()


def train(server: Server, data_path: Path, folder: Path) -> "subprocess.Popen[str]":
    (folder / "annotations.json").write_text(annotate(data_path).to_json())
    parameters = {
        "data_path": data_path,
        "annotations": folder / "annotations.json",
        "checkpoint_dir": folder / "run",
        "clip_len": 4,
        "resize_size": 32,
        "crop_size": 32,
        "batch_size": 4,
        "num_workers": 0,
        "num_epochs": 1,
        "frame_cache": "none",
    }
    options = [part for k, v in parameters.items() for part in (f"--{k}", str(v))]
    return subprocess.Popen(
        [sys.executable, "-m", "steps.train", *options],
        cwd=REPOSITORY,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ
        | {
            "MLFLOW_TRACKING_URI": server.uri,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # for the test not to wait four minutes
            "MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL": "1",
        },
    )


def steps_of(client: MlflowClient, run_id: str, name: str) -> list[int]:
    return sorted(metric.step for metric in client.get_metric_history(run_id, name))


@pytest.mark.slow
def test_a_server_that_is_killed_costs_no_metric_and_no_checkpoint(
    server: Server, tiny_data: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    client = MlflowClient()
    # One run during which the server comes back; its metrics log is written by hand.
    run_id = client.create_run("0").info.run_id
    metrics_log = tmp_path / "metrics.jsonl"
    log = TrainingLog(run_id, metrics_log, retry_seconds=0.0)
    append_entry(metrics_log, {"val_acc1": 10.0}, 1)
    log.follow()
    # And one that trains, during which it does not.
    training = train(server, tiny_data[0], tmp_path)
    run_folder = tmp_path / "run"
    deadline = time.monotonic() + 120
    while not list(run_folder.glob("metrics-*/system.jsonl")) and time.monotonic() < deadline:
        assert training.poll() is None, training.communicate()
        time.sleep(0.1)
    server.kill()

    append_entry(metrics_log, {"val_acc1": 20.0}, 2)
    for _ in range(3):
        log.follow()
    assert capfd.readouterr().err.count("tracking:") == 1  # said once, not each time

    out, err = training.communicate(timeout=300)
    assert training.returncode == 2, out + err
    assert "Traceback" not in err
    assert (run_folder / "best.pt").exists()
    assert "epoch   1/1" in out
    [message] = re.findall(r"^train: MLFLOW_TRACKING_URI: .*`(.*)`\.$", err, re.MULTILINE)

    server.start()
    server.wait()
    append_entry(metrics_log, {"val_acc1": 30.0}, 3)
    log.follow()
    assert "back after" in capfd.readouterr().err
    assert steps_of(client, run_id, "val_acc1") == [1, 2, 3]

    assert message.startswith(f"MLFLOW_TRACKING_URI={server.uri} python -m steps.log_training ")
    log_training(shlex.split(message)[4:], standalone_mode=False)
    [trained] = client.search_runs(["0"], "tags.`k400tiny.step` = 'train'")
    assert trained.info.status == "FINISHED"
    assert ERROR_TAG not in trained.data.tags
    assert trained.data.tags["k400tiny.cache_key"]
    assert trained.data.metrics["best_epoch"] == 1
    assert steps_of(client, trained.info.run_id, "val_acc1") == [1]
    system = steps_of(client, trained.info.run_id, "system/cpu_utilization_percentage")
    assert system == list(range(len(system)))
    assert len(system) > 1
    files = [
        file.path
        for folder in ("images", "checkpoints")
        for file in client.list_artifacts(trained.info.run_id, folder)
    ]
    expected = {"images/augmented_clips.png", "images/learning_curves.png", "checkpoints/best.pt"}
    assert expected <= set(files)
    series = [file for file in files if "sample_predictions+step+" in file]
    assert sorted(file.split("+")[2] for file in series if file.endswith(".png")) == ["1"]
    assert "evaluate" in trained.data.tags["mlflow.note.content"]
