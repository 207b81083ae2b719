"""Inputs that a single step finds in earlier runs: the newest of the experiment, and it says so."""

from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.tracking.inputs import settle_inputs
from k400tiny_lib.tracking.runs import step_run
from k400tiny_lib.workflow.cache import cache_key

ANNOTATIONS, BEST = "annotations/annotations.json", "checkpoints/best.pt"


def prepared(data_path: Path, *, fail: bool = False, log: bool = True) -> str:
    """The URI of the annotations of a run of prepare_data."""
    data_path.mkdir(exist_ok=True)
    with step_run("prepare_data", Config()) as run:
        mlflow.set_tag("k400tiny.data_path", str(data_path))
        if log:
            mlflow.log_text("{}", ANNOTATIONS)
    if fail:
        MlflowClient().set_terminated(run.info.run_id, "FAILED")
    return f"runs:/{run.info.run_id}/{ANNOTATIONS}"


def trained(**parameters: str) -> str:
    """The URI of the checkpoint of a run of train."""
    with step_run("train", Config()) as run:
        settle_inputs("train", resolve("train", parameters))
        mlflow.log_text("weights", BEST)
    return f"runs:/{run.info.run_id}/{BEST}"


def settled(step: str, **parameters: str) -> Config:
    with step_run(step, resolve(step, parameters)):
        return settle_inputs(step, resolve(step, parameters))


def test_train_takes_the_newest_finished_prepare_data_and_says_which(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path / "old")
    newest = prepared(tmp_path / "new")
    prepared(tmp_path / "failed", fail=True)
    prepared(tmp_path / "deleted", log=False)
    config = settled("train")
    assert (config.annotations, config.data_path) == (newest, str(tmp_path / "new"))
    out = capsys.readouterr().out
    assert f"annotations: {newest} (of the newest prepare_data, prepare_data · sample, 20" in out
    assert f"data_path: {tmp_path}/new (the clips of the annotations)" in out
    explicit = resolve("train", {"annotations": newest})
    assert cache_key("train", config) == cache_key("train", explicit)


def test_what_is_given_is_taken_and_only_the_rest_is_looked_for(store: str, tmp_path: Path) -> None:
    old = prepared(tmp_path / "old")
    prepared(tmp_path / "new")
    assert settled("train", annotations=old).data_path == str(tmp_path / "old")
    config = settled("train", annotations=old, data_path="elsewhere")
    assert (config.annotations, config.data_path) == (old, "elsewhere")
    with pytest.raises(UserError, match=r"^data_path: it is not known where the clips of a.json"):
        settled("train", annotations="a.json")


@pytest.mark.parametrize("step", ["evaluate", "export_onnx"])
def test_a_checkpoint_meets_the_data_that_it_was_trained_with_not_the_newest(
    store: str, tmp_path: Path, step: str
) -> None:
    annotations = prepared(tmp_path / "old")
    first = trained()
    prepared(tmp_path / "new")
    config = settled(step)
    expected = (first, annotations, str(tmp_path / "old"))
    assert (config.checkpoint, config.annotations, config.data_path) == expected
    newest = trained()
    assert settled(step).checkpoint == newest
    again = settled(step, checkpoint=first)
    assert (again.checkpoint, again.annotations, again.data_path) == expected
    file = tmp_path / "copied.pt"
    content = {"model": {}, "epoch": 1, "config": Config().to_dict(), "categories": {"a": 0}}
    torch.save(content | {"run_id": first.split("/")[1]}, file)
    assert settled(step, checkpoint=str(file)).annotations == annotations


def test_nested_runs_are_found_and_other_experiments_are_not(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotations = prepared(tmp_path / "data")
    MlflowClient().set_tag(annotations.split("/")[1], "mlflow.parentRunId", "0" * 32)
    assert settled("train").annotations == annotations
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", MlflowClient().create_experiment("other"))
    with pytest.raises(UserError, match=r"^annotations: no finished run of prepare_data in the "):
        settled("train")


@pytest.mark.parametrize("step", ["evaluate", "export_onnx"])
def test_without_a_training_one_line_says_what_to_run_first(store: str, step: str) -> None:
    with pytest.raises(UserError, match=r"^checkpoint: no finished run of train in .*-e train"):
        settled(step)


def test_an_export_does_without_data_that_is_not_there(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(tmp_path / "data")
    trained()
    (tmp_path / "data").rmdir()
    assert settled("export_onnx").annotations == "none"
    assert "annotations: none are used, their clips are not" in capsys.readouterr().out
    with pytest.raises(UserError, match=rf"^data_path: .*{tmp_path}/data is not there"):
        settled("evaluate")
    weights = settled("export_onnx", weights="R2Plus1D_18_Weights.KINETICS400_V1")
    assert (weights.checkpoint, weights.annotations) == ("none", "none")
    with pytest.raises(UserError, match=r"^quantize: int8 without annotations"):
        settled("export_onnx", quantize="int8")


def test_parameters_that_were_settled_are_logged(store: str, tmp_path: Path) -> None:
    annotations = prepared(tmp_path / "data")
    with step_run("train", resolve("train", {})) as run:
        settle_inputs("train", resolve("train", {}))
    resolved = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/config/resolved.yaml")
    assert f"annotations: {annotations}" in resolved
    tags = MlflowClient().get_run(run.info.run_id).data.tags
    assert tags["k400tiny.annotations"] == annotations
    assert tags["k400tiny.data_path"] == str(tmp_path / "data")
