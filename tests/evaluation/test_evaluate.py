"""The evaluation of a split, from its checks to its files; the step and its worker processes."""

import json
from pathlib import Path
from urllib.error import URLError

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from torchvision.models import WeightsEnum

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.annotations import read_annotations
from k400tiny_lib.data.sources.labels import KINETICS_400
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.comparison import OtherModel
from k400tiny_lib.evaluation.evaluation import evaluate_split
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.evaluation.shift.robustness import CORRUPTIONS
from k400tiny_lib.evaluation.worker import Job, launch_workers, predict_splits
from k400tiny_lib.models.loaded import load_model
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.tracking.evaluation_log import PREDICTIONS, other_model
from tests.conftest import REPOSITORY
from tests.helpers.evaluation import (
    random_table,
    run_workers_here,
    write_annotated_clips,
    write_checkpoint,
)
from tests.helpers.serving import CLASSES, export_tiny, register_tiny
from tests.helpers.steps import run_step_here


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """5 clips in val and in test, an untrained checkpoint, no corruptions."""
    root = tmp_path_factory.mktemp("evaluate")
    data_path, annotations, _ = write_annotated_clips(root, num_clips=5)
    return Config(
        data_path=str(data_path),
        annotations=str(annotations),
        checkpoint=str(write_checkpoint(root / "best.pt")),
        batch_size=1,
        num_workers=0,
        robustness=False,
    )


def test_processes_and_batch_sizes_leave_identical_tables(config: Config) -> None:
    left: list[int] = []

    def launch_and_count(job: Job) -> None:
        launch_workers(job)
        left.append(len(list(job.folder.glob("test-*.pkl"))))

    two = config.replace(nproc_per_node=2, batch_size=3)
    starts = ((config, run_workers_here), (two, launch_and_count))
    tables = [evaluate_split(c, start_workers=start).table for c, start in starts]
    assert left == [2]
    exact = ["video", "group", "target", "predicted", "clip_predicted"]
    pd.testing.assert_frame_equal(tables[1][exact], tables[0][exact])
    # Convolutions add up in another order for another batch: float32 rounding.
    np.testing.assert_allclose(
        probabilities_of(tables[1]), probabilities_of(tables[0]), rtol=0, atol=1e-5
    )


def test_any_number_of_processes_corrupts_the_same_clips(config: Config) -> None:
    changed = config.replace(robustness=True)
    alone, shared = (
        evaluate_split(changed, start_workers=lambda job, n=n: run_workers_here(job, n)).corrupted
        for n in (1, 6)  # more processes than clips
    )
    assert alone is not None
    pd.testing.assert_frame_equal(alone, shared)
    assert (alone.dtypes[list(CORRUPTIONS)] == np.int64).all()


def test_the_inputs_are_checked_before_anything_is_predicted(
    config: Config, tmp_path: Path
) -> None:
    def nobody(job: Job) -> None:
        raise AssertionError("predicted")

    stranger = write_checkpoint(tmp_path / "best.pt", ("other", "labels", "here"))
    content = torch.load(config.checkpoint, weights_only=True)
    content["config"]["clip_len"] = 99
    torch.save(content, tmp_path / "long.pt")
    for message, changes in {
        "split: train has no clips": {"split": "train"},
        "checkpoint: .* does not know 3 of": {"checkpoint": str(stranger)},
        "data_path: .* lacks 10 of 10": {"data_path": str(tmp_path)},
        "clip_len: 99 frames, but the longest": {"checkpoint": str(tmp_path / "long.pt")},
        "num_clips: 7 views, but test0 has 6 frames": {"num_clips": 7},
    }.items():
        with pytest.raises(UserError, match=f"^{message}"):
            evaluate_split(config.replace(**changes), start_workers=nobody)
    with pytest.raises(UserError, match=r"^compare_with: it was evaluated on other clips"):
        evaluate_split(config, OtherModel("other", random_table()), nobody)


def test_an_evaluation_has_the_scores_and_files_of_its_parts(config: Config) -> None:
    changed = config.replace(num_clips=2, robustness=True)
    annotations = read_annotations(Path(config.annotations))
    tables = predict_splits(changed, annotations, run_workers_here).tables
    evaluation = evaluate_split(changed, OtherModel("itself", tables["test"]), run_workers_here)
    assert evaluation.views is not None
    assert evaluation.comparison is not None
    assert evaluation.compared_with == "itself"
    assert evaluation.scores["test_acc1_difference"] == 0
    assert evaluation.scores["test_temperature"] == evaluation.calibration.temperature
    names = {"robustness_as_recorded_acc1", "robustness_3_of_4_frames_dropped_acc1"}
    assert {f"test_{name}" for name in names} <= set(evaluation.scores)
    assert evaluation.scores["test_robustness_as_recorded_acc1"] == evaluation.score("clip_acc1")
    acc1 = 100 * (evaluation.table["predicted"] == evaluation.table["target"]).mean()
    assert evaluation.summary.startswith(f"test: top-1 {acc1:.1f} % (95 % interval ")
    assert "on 5 clips of 3 sources. 2 clips of 4 frames" in evaluation.summary
    files = evaluation.files()
    assert list(files) == [
        "predictions.csv",
        "predictions_val.csv",
        "per_class.csv",
        "robustness.csv",
        "calibration.json",
    ]
    facts = json.loads(files["calibration.json"])
    assert facts["fitted_on"] == 5
    # 5 clips of 3 sources promise nothing.
    assert facts["confidence_threshold"] == evaluation.scores["test_confidence_threshold"] == 0
    assert evaluation.calibration.statement in facts["statement"]
    assert "There is no confidence threshold: " in facts["statement"]
    assert facts["statement"].split(". ")[0] in evaluation.summary


def test_the_validation_split_is_not_calibrated_on_itself(config: Config) -> None:
    evaluation = evaluate_split(config.replace(split="val"), start_workers=run_workers_here)
    assert evaluation.calibration is evaluation.views is evaluation.comparison is None
    files = evaluation.files()
    assert list(files) == ["predictions.csv", "per_class.csv", "calibration.json"]
    facts = json.loads(files["calibration.json"])
    assert facts["applied"] is False
    assert facts["confidence_threshold"] == 0
    assert "there are none besides those evaluated" in facts["statement"]


def test_the_other_model_is_a_run_a_table_or_a_registered_model(
    config: Config, store: str, tmp_path: Path
) -> None:
    assert other_model(config) is None
    table = random_table()
    table.to_csv(tmp_path / "table.csv", index=False)
    with mlflow.start_run() as evaluated:
        mlflow.log_text(table.to_csv(index=False), PREDICTIONS)
        mlflow.set_tag("k400tiny.protocol", "3 crops")
    with mlflow.start_run() as main:
        mlflow.set_tag("k400tiny.run.evaluate", evaluated.info.run_id)
    path, run, parent = str(tmp_path / "table.csv"), evaluated.info.run_id, main.info.run_id
    for uri, name in {
        path: path,
        run: f"{run} (protocol: 3 crops)",
        f"runs:/{parent}": f"runs:/{parent} (protocol: 3 crops)",
    }.items():
        other = other_model(config.replace(compare_with=uri))
        assert other.name == name
        pd.testing.assert_frame_equal(other.predictor, table)
    with pytest.raises(UserError, match=r"^compare_with: no run 0{32} .*Needed: "):
        other_model(config.replace(compare_with="0" * 32))

    uri, _ = register_tiny(export_tiny(tmp_path / "tiny.onnx"))
    other = other_model(config.replace(compare_with=uri))
    assert other.predictor.class_names == CLASSES
    assert other.predictor.predict(np.zeros((1, 4, 40, 40, 3), np.uint8)).shape == (1, 3)


def test_torchvision_weights_are_evaluated_without_training_and_compared(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data_path, annotations, _ = write_annotated_clips(
        tmp_path, num_clips=3, num_frames=16, labels=KINETICS_400
    )
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(build_model("r2plus1d_18", 400).state_dict(), hub / "r2plus1d_18-91a641e6.pth")
    other = pd.DataFrame(
        {"video": [f"test{n}" for n in range(3)], "target": [0, 1, 2], "predicted": 0}
    )
    other.to_csv(tmp_path / "other.csv", index=False)
    parameters = {
        "data_path": data_path,
        "annotations": annotations,
        "weights": "R2Plus1D_18_Weights.KINETICS400_V1",
        "num_workers": 0,
        "robustness": False,
        "compare_with": tmp_path / "other.csv",
    }
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    code = run_step_here("evaluate", parameters)
    assert code == 0, capsys.readouterr().err

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


def test_unknown_classes_are_refused_by_name(tmp_path: Path) -> None:
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
    for arguments in ({"checkpoint": "none"}, both):
        with pytest.raises(UserError, match=r"^checkpoint: evaluate needs either"):
            resolve("evaluate", inputs | arguments)
