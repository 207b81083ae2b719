"""export_onnx as a user starts it, on a real registry."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.config import resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.classifier import from_checkpoint
from k400tiny_lib.export.scoring import Evaluated, read_evaluation
from k400tiny_lib.export.test_clips import ClipFrames
from tests.conftest import LABELS, REPOSITORY
from tests.helpers.evaluation import write_annotated_clips
from tests.helpers.export import CLIP_LEN, build, disturb, write_best

NAME, TEMPERATURE = "step-model", 1.5


def run_step(program: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *program, *arguments, "--registered_model_name", NAME],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def write_evaluation(root: Path) -> tuple[ClipFrames, list[str]]:
    """Data, a checkpoint and what evaluate would have found; the clips, and the step's options."""
    data_path, path, annotations = write_annotated_clips(root, num_clips=6)
    splits = annotations.splits | {"train": annotations.splits["val"]}
    annotations = dataclasses.replace(annotations, splits=splits)
    path.write_text(annotations.to_json())
    checkpoint = write_best(root / "best.pt", build("r3d_18"), "r3d_18")
    frames = ClipFrames(annotations, data_path, CLIP_LEN, 1)
    eager = from_checkpoint(checkpoint).eager(1)
    folder = root / "evaluation"
    folder.mkdir()
    table = frames.predictions(lambda clip: eager(torch.from_numpy(clip)))
    table.to_csv(folder / "predictions.csv", index=False)
    calibration = {"temperature": TEMPERATURE, "applied": True}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    return frames, [
        "--data_path",
        str(data_path),
        "--annotations",
        str(path),
        "--checkpoint",
        str(checkpoint),
        "--evaluation",
        str(folder),
    ]


def test_a_registered_variant_says_everything_about_itself(store: str, tmp_path: Path) -> None:
    frames, options = write_evaluation(tmp_path)
    done = run_step(["-m", "steps.export_onnx"], *options, "--quantize", "int8")
    assert done.returncode == 0, done.stderr
    assert "not used" not in done.stdout

    client = MlflowClient()
    version = client.get_model_version_by_alias(NAME, "champion")
    assert client.get_model_version_by_alias(NAME, "challenger").version == version.version
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    metadata = {key: json.loads(value) for key, value in model.metadata.metadata.items()}
    assert metadata["class_names"] == list(LABELS)
    assert (metadata["clip_len"], metadata["temperature"]) == (CLIP_LEN, TEMPERATURE)
    assert metadata["data_digest"] == frames.annotations.data_digest
    assert metadata["frames_free"] is True
    graph = mlflow.onnx.load_model(f"models:/{NAME}@champion")
    assert {p.key: json.loads(p.value) for p in graph.metadata_props} == metadata
    assert str(metadata["test_acc1"]) == version.tags["test_acc1"]
    assert version.tags["test_digest"] == frames.test_digest
    assert float(version.tags["parity_max_abs_diff"]) < 1e-4
    for part in (f"{metadata['test_acc1']:.1f} %", metadata["protocol"], "load_model", "## Limits"):
        assert part in version.description

    run = client.get_run(version.run_id)
    variants = mlflow.load_table("variants.json", [run.info.run_id])
    assert list(variants["name"]) == ["float32", "int8"]
    assert variants["size_mb"][1] < 0.3 * variants["size_mb"][0]
    [kept] = variants[variants["kept"]]["name"]
    assert version.tags["quantize"] == {"float32": "none", "int8": "int8"}[kept]
    # The stored predictions are those of the registered graph, at the temperature.
    stored = pd.read_csv(
        mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/export/predictions.csv")
    )
    found = frames.predictions(lambda clip: model.predict({"frames": clip})["probabilities"])
    np.testing.assert_allclose(probabilities_of(stored), probabilities_of(found), atol=1e-4)
    raw = pd.read_csv(tmp_path / "evaluation" / "predictions.csv")
    expected = scale(probabilities_of(raw), TEMPERATURE)
    np.testing.assert_allclose(probabilities_of(found), expected, atol=0.05)


def test_a_model_disturbed_by_a_hundredth_leaves_no_version_behind(
    store: str, tmp_path: Path, exported: bytes
) -> None:
    """The graph is that of the undisturbed model, everything else the real step."""
    (tmp_path / "graph.onnx").write_bytes(exported)
    checkpoint = write_best(tmp_path / "best.pt", disturb(build()))
    program = tmp_path / "program.py"
    program.write_text(
        "import onnx\n"
        "from k400tiny_lib.export import onnx_graph\n"
        f"onnx_graph.export_graph = lambda *_: onnx.load({str(tmp_path / 'graph.onnx')!r})\n"
        "from steps.export_onnx import export_onnx\n"
        "export_onnx()\n"
    )
    done = run_step([str(program)], "--checkpoint", str(checkpoint))
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if "tolerance: " in line]
    assert "Nothing was registered" in line
    assert MlflowClient().search_registered_models() == []
    assert MlflowClient().search_logged_models(["0"]) == []
    [run] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert run.info.status == "FAILED"


def test_an_evaluation_of_another_model_or_of_other_clips_is_not_used(tmp_path: Path) -> None:
    frames, _ = write_evaluation(tmp_path)
    folder = tmp_path / "evaluation"
    eager = from_checkpoint(tmp_path / "best.pt").eager(1)
    found = read_evaluation(folder, frames, eager)
    assert isinstance(found, Evaluated)
    assert found.temperature == TEMPERATURE
    another = build("r3d_18")
    with torch.no_grad():
        another.fc.bias[0] += 0.1
    other = write_best(tmp_path / "other.pt", another, "r3d_18")
    reason = read_evaluation(folder, frames, from_checkpoint(other).eager(1))
    assert "probabilities of test0 are not this model's" in str(reason)
    (folder / "predictions.csv").write_text("video,target,predicted\nelsewhere,0,0\n")
    assert "not of the test clips" in str(read_evaluation(folder, frames, eager))
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(UserError, match=r"^evaluation: .*no readable calibration\.json"):
        read_evaluation(folder, frames, eager)


def test_what_needs_clips_is_refused_without_annotations() -> None:
    for given in ({"quantize": "int8"}, {"evaluation": "runs:/0"}):
        with pytest.raises(UserError, match="without annotations"):
            resolve("export_onnx", {"checkpoint": "best.pt"} | given)
