"""The decisions of an export, on a network of a few weights and without a process."""

import dataclasses
import json
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export import variants
from k400tiny_lib.export.exporter import export_model
from k400tiny_lib.export.parity import ParityCase, open_session, run_eager, run_onnx
from k400tiny_lib.export.scoring import ExportClips, read_evaluation
from k400tiny_lib.models.loaded import Geometry, LoadedModel
from k400tiny_lib.registry.registry import log_export, log_parity
from k400tiny_lib.system import cpu_name
from tests.helpers.evaluation import write_annotated_clips
from tests.helpers.export import STATEMENT, THRESHOLD, write_evaluation
from tests.helpers.serving import CLASSES, CLIP_LEN, GEOMETRY, TinyNetwork

TEMPERATURE = 1.5
# Tolerances of 5e-5: a pixel on the edge of two gray levels moves a probability by 1e-5.
LOADED = LoadedModel(TinyNetwork().eval(), "r2plus1d_18", GEOMETRY, CLASSES, "tiny")
EAGER = partial(run_eager, LOADED.model, GEOMETRY)


@pytest.fixture
def inputs(tmp_path: Path) -> Config:
    """Parameters of an export with data and the evaluation of the same model."""
    data_path, path, annotations = write_annotated_clips(tmp_path, num_clips=6)
    clips = ExportClips(annotations, data_path, CLIP_LEN, 1)
    write_evaluation(tmp_path / "evaluation", clips, EAGER, TEMPERATURE)
    return Config(
        data_path=str(data_path), annotations=str(path), evaluation=str(tmp_path / "evaluation")
    )


def clips_of(inputs: Config) -> ExportClips:
    return ExportClips.of_config(inputs, CLIP_LEN)


def test_an_evaluation_of_the_same_model_gives_temperature_and_score(inputs: Config) -> None:
    notes: list[str] = []
    exported = export_model(LOADED, inputs, commit="abc", note=notes.append)
    clips = clips_of(inputs)
    expected = scale(probabilities_of(clips.predictions(EAGER)), TEMPERATURE)
    assert exported.choice.predictions is not None
    np.testing.assert_allclose(probabilities_of(exported.choice.predictions), expected, atol=1e-6)
    # The graph has the same temperature inside.
    computed = clips.predictions(partial(run_onnx, open_session(exported.choice.proto)))
    np.testing.assert_allclose(probabilities_of(computed), expected, atol=5e-5)
    facts = ("temperature", "commit", "test_clips", "resize_size", "antialias", "quantize")
    assert [exported.metadata[name] for name in facts] == [1.5, "abc", 6, 36, True, "none"]
    properties = {p.key: p.value for p in exported.choice.proto.metadata_props}
    assert json.loads(properties["confidence_threshold"]) == THRESHOLD
    assert json.loads(properties["calibration"]) == STATEMENT
    assert properties["num_frames"] == str(CLIP_LEN)
    assert exported.metadata["test_digest"] == clips.test_digest
    assert 0 < exported.parity < 1e-4
    assert not exported.not_scored
    assert notes == ["frames: r2plus1d_18 exports with 4 frames only"]


def test_without_an_evaluation_the_graph_itself_is_scored(inputs: Config) -> None:
    notes: list[str] = []
    exported = export_model(LOADED, inputs.replace(evaluation="none"), note=notes.append)
    expected = probabilities_of(clips_of(inputs).predictions(EAGER))
    assert exported.choice.predictions is not None
    actual = probabilities_of(exported.choice.predictions)
    np.testing.assert_allclose(actual, expected, atol=5e-5)
    assert (exported.metadata["temperature"], exported.metadata["confidence_threshold"]) == (1, 0)
    assert "exported without the results of evaluate" in exported.metadata["calibration"]
    assert "confidence_threshold: none, no answer will be marked as unknown" in notes


def test_without_test_clips_there_is_no_score_and_no_variant() -> None:
    exported = export_model(LOADED, Config())
    assert exported.choice.predictions is None
    assert exported.not_scored == "there are no annotations"
    assert "test_acc1" not in exported.metadata
    with pytest.raises(UserError, match=r"^quantize: there are no annotations\. Needed: test clip"):
        export_model(LOADED, Config(quantize="int8"))


def test_a_graph_beyond_the_tolerance_is_refused_and_its_cases_are_logged(store: str) -> None:
    with mlflow.start_run() as run, pytest.raises(UserError, match=r"^tolerance: .* Nothing was r"):
        export_model(LOADED, Config(tolerance=1e-12), on_parity=log_parity)
    table = mlflow.load_table("parity.json", [run.info.run_id])
    assert list(table.columns) == list(ParityCase.__dataclass_fields__)
    assert table["max_abs_diff"].max() > 1e-12
    assert MlflowClient().search_logged_models(["0"]) == []


def test_exact_sizes_and_weights_are_in_the_metadata() -> None:
    geometry = Geometry(CLIP_LEN, (36, 48), 32, antialias=False)
    exported = export_model(
        LoadedModel(LOADED.model, "r2plus1d_18", geometry, CLASSES, "tiny", "run"), Config()
    )
    facts = [exported.metadata[name] for name in ("resize_size", "antialias", "training_run_id")]
    assert facts == [[36, 48], False, "run"]
    properties = {p.key: p.value for p in exported.choice.proto.metadata_props}
    assert properties["resize_size"] == "[36, 48]"
    onnx.checker.check_model(exported.choice.proto)


def test_a_rejected_variant_stays_with_the_processor_that_it_was_measured_on(
    inputs: Config, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {"float32": [1.0] * 4, "fp16": [2.0] * 4}
    monkeypatch.setattr(variants, "time_in_turns", lambda *_: seconds)
    validation = dataclasses.replace(clips_of(inputs).annotations)
    train = {"train": validation.splits["val"]}
    Path(inputs.annotations).write_text(
        dataclasses.replace(validation, splits=validation.splits | train).to_json()
    )
    notes: list[str] = []
    exported = export_model(LOADED, inputs.replace(quantize="fp16"), note=notes.append)
    with mlflow.start_run() as run:
        log_export(exported)
    assert exported.choice.name == "float32"
    assert "fp16 is not registered; it stays as variants/fp16.onnx of this run" in notes[-1]
    assert cpu_name() in notes[-1]
    table = mlflow.load_table("variants.json", [run.info.run_id])
    assert list(table["measured_on"]) == [cpu_name()] * 2
    uri = f"runs:/{run.info.run_id}/variants/fp16.onnx"
    variant = onnx.load(mlflow.artifacts.download_artifacts(uri))
    properties = {p.key: json.loads(p.value) for p in variant.metadata_props}
    assert properties["quantize"] == "fp16"
    assert properties["measured_on"] == cpu_name()
    assert properties["class_names"] == CLASSES
    assert "test_acc1" in properties
    assert exported.metadata["quantize"] == "none"


def test_an_evaluation_of_another_model_or_of_other_clips_is_not_used(inputs: Config) -> None:
    clips, folder = clips_of(inputs), Path(inputs.evaluation)
    prior = read_evaluation(folder, clips, EAGER)
    assert not isinstance(prior, str)
    assert prior.temperature == TEMPERATURE
    another = TinyNetwork()
    with torch.no_grad():
        another.head.bias[0] += 0.1
    reason = read_evaluation(folder, clips, partial(run_eager, another, GEOMETRY))
    assert "probabilities of test0 are not this model's" in str(reason)
    calibration = json.loads((folder / "calibration.json").read_text())
    for name in ("confidence_threshold", "statement"):
        del calibration[name]
    (folder / "calibration.json").write_text(json.dumps(calibration))
    older = read_evaluation(folder, clips, EAGER)
    assert not isinstance(older, str)
    assert (older.temperature, older.confidence_threshold) == (TEMPERATURE, 0)
    (folder / "predictions.csv").write_text("video,target,predicted\nelsewhere,0,0\n")
    assert "not of the test clips" in str(read_evaluation(folder, clips, EAGER))
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match=r"^evaluation: .*no readable calibration\.json"):
        read_evaluation(folder, clips, EAGER)
