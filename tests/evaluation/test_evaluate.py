"""The step and its workers, through torchrun, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import WeightsEnum

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.sources.labels import KINETICS_400
from k400tiny_lib.distributed.launch import launch
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation import worker
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.models.loaded import load_model
from k400tiny_lib.models.weights import build_model
from tests.conftest import REPOSITORY
from tests.helpers.evaluation import write_annotated_clips, write_checkpoint


def run_step(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "steps.evaluate", *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_processes_and_batch_sizes_leave_identical_tables(tmp_path: Path) -> None:
    data_path, path, annotations = write_annotated_clips(tmp_path, num_clips=5)
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    tables = []
    for processes, batch_size in ((1, 1), (2, 3)):
        config = Config(
            data_path=str(data_path),
            annotations=str(path),
            checkpoint=str(checkpoint),
            batch_size=batch_size,
            nproc_per_node=processes,
            num_workers=0,
            robustness=False,
        )
        folder = tmp_path / f"{processes}-{batch_size}"
        folder.mkdir()
        job = worker.Job(config, folder)
        launch(job, module=worker.__name__)
        assert len(list(folder.glob("test-*.npz"))) == processes
        tables.append(worker.read_tables(job, annotations)["test"])
    exact = ["video", "group", "target", "predicted", "clip_predicted"]
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table[exact], tables[0][exact])
        # Convolutions add up in another order for another batch: float32 rounding.
        np.testing.assert_allclose(
            probabilities_of(table), probabilities_of(tables[0]), rtol=0, atol=1e-5
        )


def test_torchvision_weights_are_evaluated_without_training_and_compared(
    tmp_path: Path, store: str
) -> None:
    data_path, annotations, _ = write_annotated_clips(
        tmp_path, num_clips=3, num_frames=16, labels=KINETICS_400
    )
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(build_model("r2plus1d_18", 400).state_dict(), hub / "r2plus1d_18-91a641e6.pth")
    inputs = ["--data_path", str(data_path), "--annotations", str(annotations)]
    weights = ["--weights", "R2Plus1D_18_Weights.KINETICS400_V1"]
    other = pd.DataFrame(
        {"video": [f"test{n}" for n in range(3)], "target": [0, 1, 2], "predicted": 0}
    )
    other.to_csv(tmp_path / "other.csv", index=False)
    done = run_step(
        *inputs,
        *weights,
        "--num_workers",
        "0",
        "--robustness",
        "False",
        "--compare_with",
        str(tmp_path / "other.csv"),
        TORCH_HOME=str(tmp_path / "torch"),
    )
    assert done.returncode == 0, done.stderr

    run = mlflow.search_runs(search_all_experiments=True, output_format="list")[0]
    folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/evaluation"))
    table = pd.read_csv(folder / "predictions.csv")
    assert list(table["video"]) == [f"test{n}" for n in range(3)]
    names = ("acc1", "acc5", "present_acc1", "ece", "clip_acc1", "acc1_difference", "mcnemar_p")
    assert {f"test_{name}" for name in names} <= set(run.data.metrics)
    assert run.data.metrics["test_acc1"] == 100 * (table["predicted"] == table["target"]).mean()
    assert "112 px (resized to 128x171)" in run.data.tags["k400tiny.protocol"]
    dataset = run.inputs.dataset_inputs[0].dataset
    assert dataset.name == "k400tiny-test"
    assert json.loads(dataset.profile)["num_rows"] == 3
    page = (folder / "report.html").read_text()
    assert "67.463 %" in page
    assert "86.175 %" in page
    assert json.loads((folder / "calibration.json").read_text())["fitted_on"] == 3
    assert {path.name for path in folder.iterdir()} == {
        "predictions.csv",
        "predictions_val.csv",
        "per_class.csv",
        "calibration.json",
        "confusion_matrix.png",
        "report.html",
    }


def test_a_users_mistake_is_one_line(tmp_path: Path, store: str) -> None:
    data_path, path, _ = write_annotated_clips(tmp_path, num_clips=2)
    checkpoint = write_checkpoint(tmp_path / "best.pt")
    done = run_step(
        "--data_path",
        str(data_path),
        "--annotations",
        str(path),
        "--checkpoint",
        str(checkpoint),
        "--split",
        "train",
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("evaluate: split: train has no clips.")
    assert "Traceback" not in done.stderr


def test_strange_classes_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "best.pt", ("other", "labels", "here"))
    with pytest.raises(UserError, match=r"^checkpoint: .* does not know 1 of .*first 'sliding'"):
        load_model(Config(checkpoint=str(checkpoint)), {"sliding": 0})


def test_weights_that_cannot_be_downloaded_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*arguments: object, **options: object) -> None:
        raise URLError("offline")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    config = Config(weights="R2Plus1D_18_Weights.KINETICS400_V1")
    with pytest.raises(UserError, match=r"^weights: .*r2plus1d_18-91a641e6\.pth cannot be down"):
        load_model(config, {"abseiling": 0})


def test_a_checkpoint_and_weights_at_once_are_refused() -> None:
    inputs = {"data_path": "frames", "annotations": "annotations.json"}
    both = {"checkpoint": "best.pt", "weights": "R2Plus1D_18_Weights.KINETICS400_V1"}
    for given in ({}, both):
        with pytest.raises(UserError, match=r"^checkpoint: evaluate needs either"):
            resolve("evaluate", inputs | given)
