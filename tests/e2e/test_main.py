"""The real thing: `mlflow run . -e main` on a tiny data set, as a user starts it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from k400tiny_lib.config import CHAIN, STEPS
from tests.conftest import REPOSITORY, write_data
from tests.helpers.store import tracking

NAME = "k400tiny-test"
TINY = {
    "clip_len": "4",
    "resize_size": "32",
    "crop_size": "32",
    "batch_size": "4",
    "num_epochs": "1",
    "num_workers": "1",
    "registered_model_name": NAME,
    "video_model_name": f"{NAME}-video",
}


@dataclass(frozen=True)
class Project:
    """A store and data of its own for the runs of this file."""

    folder: Path
    data_path: Path
    gt_csv: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder}/mlflow.db")

    def command(self, **parameters: str) -> list[str]:
        own = {
            "data_path": str(self.data_path),
            "gt_csv": str(self.gt_csv),
            "checkpoint_dir": str(self.folder / "checkpoints"),
            "output_dir": str(self.folder / "data"),
        }
        command = [sys.executable, "-m", "mlflow", "run", str(REPOSITORY), "-e", "main"]
        for name, value in (own | TINY | parameters).items():
            command += ["-P", f"{name}={value}"]
        return [*command, "--env-manager", "local"]

    def environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        store = f"sqlite:///{self.folder}/mlflow.db"
        return os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": path}

    def run(self, **parameters: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(**parameters),
            env=self.environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )

    def runs(self, filter_string: str = "") -> list[Run]:
        return list(self.client.search_runs(["0"], filter_string))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    folder = tmp_path_factory.mktemp("project")
    return Project(folder, *write_data(folder))


@pytest.fixture(scope="module")
def finished(project: Project) -> Iterator[Run]:
    done = project.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test top-1" in done.stdout
    last = done.stdout.splitlines()[-1]
    [parent] = project.runs("tags.`k400tiny.step` = 'main'")
    page = f"#/experiments/0/runs/{parent.info.run_id}?workflowType=machine_learning"
    store = f"mlflow ui --backend-store-uri sqlite:///{project.folder}/mlflow.db"
    assert last == f"look at it: {store}, then http://127.0.0.1:5000/{page}"
    with tracking(f"sqlite:///{project.folder}/mlflow.db"):
        yield parent


def test_main_leaves_a_parent_and_four_nested_finished_runs_with_the_contracts_names(
    finished: Run, project: Project
) -> None:
    assert finished.info.status == "FINISHED"
    children = project.runs(f"tags.mlflow.parentRunId = '{finished.info.run_id}'")
    by_step = {run.data.tags["k400tiny.step"]: run for run in children}
    assert set(by_step) == {"prepare_data", "train", "evaluate", "export_onnx"}
    expected = {
        "prepare_data": (
            "num_clips num_groups num_classes num_dropped",
            "annotations/annotations.json annotations/splits/train.csv "
            "annotations/splits/val.csv annotations/splits/test.csv "
            "annotations/data_report.json",
        ),
        "train": (
            "train_loss train_acc1 val_loss val_acc1 lr clips_per_second "
            "data_time_fraction best_epoch best_val_acc1",
            "checkpoints/best.pt",
        ),
        "evaluate": (
            "test_loss test_acc1 test_mean_class_acc test_ece test_acc1_ci_low "
            "test_acc1_ci_high test_clip_acc1",
            "evaluation/predictions.csv evaluation/per_class.csv "
            "evaluation/confusion_matrix.png evaluation/report.html",
        ),
        "export_onnx": ("parity_max_abs_diff onnx_latency_ms torch_latency_ms", ""),
    }
    for step, (metrics, artifacts) in expected.items():
        run = by_step[step]
        assert run.info.status == "FINISHED"
        assert run.data.tags["k400tiny.cache_key"]
        assert set(metrics.split()) <= set(run.data.metrics)
        for path in artifacts.split():
            folder = path.rpartition("/")[0]
            assert path in [f.path for f in project.client.list_artifacts(run.info.run_id, folder)]


def test_the_parent_has_a_readable_name_settled_parameters_and_the_scores(
    finished: Run, project: Project
) -> None:
    acc1 = finished.data.metrics["test_acc1"]
    assert finished.info.run_name == f"frames · r2plus1d_18 · top-1 {acc1:.1f} %"
    params = finished.data.params
    assert set(STEPS["main"].params) <= set(params)
    assert (params["clip_len"], params["lr"], params["num_clips"]) == ("4", "0.01", "1")
    assert "recipe" not in params.values()
    note = finished.data.tags["mlflow.note.content"]
    children = project.runs(f"tags.mlflow.parentRunId = '{finished.info.run_id}'")
    assert {run.info.run_name for run in children} == set(CHAIN)
    assert all(run.info.run_id in note for run in children)


def test_the_scores_are_on_the_page_of_the_registered_model(
    finished: Run, project: Project
) -> None:
    version = project.client.get_model_version_by_alias(NAME, "champion")
    model = project.client.get_logged_model(version.source.removeprefix("models:/"))
    scores = {metric.key: metric.value for metric in model.metrics}
    assert scores["test_acc1"] == finished.data.metrics["test_acc1"]


def test_the_champion_loads_and_predicts_raw_frames(finished: Run) -> None:
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    for count in (1, 3):
        frames = np.random.default_rng(0).integers(0, 256, (count, 4, 336, 336, 3), dtype=np.uint8)
        probabilities = model.predict(frames)["probabilities"]
        assert probabilities.shape == (count, 3)
        np.testing.assert_allclose(probabilities.sum(1), 1, atol=1e-5)


def test_the_same_command_again_reuses_every_step_whatever_the_file_times(
    finished: Run, project: Project
) -> None:
    os.utime(next(project.data_path.glob("*/frame00.jpg")))
    before = len(project.runs())
    done = project.run()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("re-used") == 4
    assert len(project.runs()) == before + 1


def test_a_mistyped_parameter_is_one_line_and_no_run_stays_running(project: Project) -> None:
    done = project.run(lr="abc")
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if line.startswith("lr: ")]
    assert "'abc' is not allowed" in line
    assert "Traceback" not in done.stderr
    assert project.runs("attributes.status = 'RUNNING'") == []


def test_a_step_that_fails_stops_the_chain_with_its_message(
    finished: Run, project: Project
) -> None:
    done = project.run(batch_size="1000")
    assert done.returncode != 0
    assert "train failed" in done.stderr
    assert done.stderr.count("batch_size: 1000 on 1 process(es) needs 1000") == 1
    assert "Traceback" not in done.stderr
    assert project.runs("attributes.status = 'RUNNING'") == []
    newest = project.runs("tags.`k400tiny.step` = 'main'")[0]
    assert newest.info.status == "FAILED"
    assert "batch_size: 1000 on 1 process(es) needs" in newest.data.tags["k400tiny.error"]


def test_sigterm_in_the_middle_of_training_leaves_no_run_running(
    finished: Run, project: Project
) -> None:
    process = subprocess.Popen(
        project.command(num_epochs="500"),
        env=project.environment(),
        cwd=project.folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # The second train run of the store is this test's; its metrics log shows that it trains.
    deadline = time.monotonic() + 300
    checkpoints = project.folder / "checkpoints"
    started = len(list(checkpoints.glob("metrics-*.jsonl")))
    while len(list(checkpoints.glob("metrics-*.jsonl"))) == started and time.monotonic() < deadline:
        time.sleep(0.5)
    assert project.runs("attributes.status = 'RUNNING'")
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=120)
    deadline = time.monotonic() + 60
    while project.runs("attributes.status = 'RUNNING'") and time.monotonic() < deadline:
        time.sleep(0.5)
    assert project.runs("attributes.status = 'RUNNING'") == []
