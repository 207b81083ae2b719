"""The export_onnx step on a real registry."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import onnx
import pandas as pd
import pytest
from mlflow import MlflowClient
from torch import nn

from k400tiny_lib.config import resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.parity import run_eager
from k400tiny_lib.export.scoring import ExportClips
from tests.conftest import LABELS
from tests.helpers.evaluation import write_annotated_clips
from tests.helpers.export import (
    CLIP_LEN,
    GEOMETRY,
    STATEMENT,
    THRESHOLD,
    build,
    write_best,
    write_evaluation,
)
from tests.helpers.steps import run_step_here

NAME, TEMPERATURE = "step-model", 1.5


def write_inputs(root: Path) -> tuple[ExportClips, dict[str, Any]]:
    """Data, a checkpoint and its evaluation: the clips, and the parameters of the step."""
    data_path, path, annotations = write_annotated_clips(root, num_clips=6)
    splits = annotations.splits | {"train": annotations.splits["val"]}
    annotations = dataclasses.replace(annotations, splits=splits)
    path.write_text(annotations.to_json())
    model = build("mc3_18")
    checkpoint = write_best(root / "best.pt", model, "mc3_18")
    clips = ExportClips(annotations, data_path, CLIP_LEN, 1)
    eager = partial(run_eager, model, GEOMETRY)
    write_evaluation(root / "evaluation", clips, eager, TEMPERATURE)
    return clips, {
        "data_path": data_path,
        "annotations": path,
        "checkpoint": checkpoint,
        "evaluation": root / "evaluation",
        "registered_model_name": NAME,
    }


def test_a_registered_variant_says_everything_about_itself(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, parameters = write_inputs(tmp_path)
    parameters |= {"quantize": "int8", "onnx_dir": tmp_path / "exported"}
    code, printed = run_step_here("export_onnx", parameters), capsys.readouterr()
    assert code == 0, printed.err
    assert "not used" not in printed.out
    [line] = [line for line in printed.out.splitlines() if line.startswith("onnx_dir: ")]
    assert str(tmp_path / "exported") in line

    client = MlflowClient()
    version = client.get_model_version_by_alias(NAME, "champion")
    assert client.get_model_version_by_alias(NAME, "challenger").version == version.version
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    metadata = {key: json.loads(value) for key, value in model.metadata.metadata.items()}
    assert metadata["class_names"] == list(LABELS)
    assert (metadata["clip_len"], metadata["temperature"]) == (CLIP_LEN, TEMPERATURE)
    assert metadata["confidence_threshold"] == THRESHOLD
    assert metadata["data_digest"] == clips.annotations.data_digest
    assert metadata["frames_free"] is True
    graph = mlflow.onnx.load_model(f"models:/{NAME}@champion")
    assert onnx.load(tmp_path / "exported" / "model.onnx") == graph
    labels = (tmp_path / "exported" / "labels.txt").read_text("utf-8")
    assert labels.splitlines() == metadata["class_names"]
    vector = np.load(tmp_path / "exported" / "test_vector.npz")
    answered = model.predict({"frames": vector["frames"]})["probabilities"]
    np.testing.assert_allclose(answered, vector["probabilities"], atol=1e-6)
    assert vector["frames"].shape[1] == metadata["num_frames"]
    assert {p.key: json.loads(p.value) for p in graph.metadata_props} == metadata
    assert str(metadata["test_acc1"]) == version.tags["test_acc1"]
    assert version.tags["test_digest"] == clips.test_digest
    assert float(version.tags["parity_max_abs_diff"]) < 1e-4
    for part in (f"{metadata['test_acc1']:.1f} %", metadata["protocol"], "load_model", "## Limits"):
        assert part in version.description

    run = client.get_run(version.run_id)
    variants = mlflow.load_table("variants.json", [run.info.run_id])
    assert list(variants["name"]) == ["float32", "int8"]
    assert variants["size_mb"][1] < 0.3 * variants["size_mb"][0]
    [kept] = variants[variants["kept"]]["name"]
    assert version.tags["quantize"] == {"float32": "none", "int8": "int8"}[kept]
    kept_for = f" Temperature and confidence threshold are those of float32, kept for {kept}."
    assert metadata["calibration"] == STATEMENT + kept_for * (kept != "float32")
    # The stored predictions are those of the registered graph, at the temperature.
    stored = pd.read_csv(
        mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/export/predictions.csv")
    )
    computed = clips.predictions(
        lambda frames: model.predict({"frames": frames.numpy()})["probabilities"]
    )
    np.testing.assert_allclose(probabilities_of(stored), probabilities_of(computed), atol=1e-4)
    raw = pd.read_csv(tmp_path / "evaluation" / "predictions.csv")
    expected = scale(probabilities_of(raw), TEMPERATURE)
    np.testing.assert_allclose(probabilities_of(computed), expected, atol=0.05)


def test_an_onnx_dir_that_cannot_be_written_is_refused_before_the_work(
    store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    checkpoint = write_best(tmp_path / "best.pt", nn.Linear(1, 1))  # the work would refuse it
    parameters = {"checkpoint": checkpoint, "onnx_dir": tmp_path / "file"}
    assert run_step_here("export_onnx", parameters) == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1].startswith("export_onnx: onnx_dir: ")
    assert "Traceback" not in printed.err


def test_what_needs_clips_is_refused_without_annotations() -> None:
    for given in ({"quantize": "int8"}, {"evaluation": "runs:/0"}):
        with pytest.raises(UserError, match="without annotations"):
            resolve("export_onnx", {"checkpoint": "best.pt", "annotations": "none"} | given)
