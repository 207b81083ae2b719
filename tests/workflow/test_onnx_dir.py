"""`onnx_dir` of main: checked before the first step, written although the export is re-used."""

from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from k400tiny_lib.config import Config
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.errors import UserError
from k400tiny_lib.tracking.runs import MODEL_VERSION_TAG
from k400tiny_lib.workflow import chain
from tests.helpers.serving import export_tiny, register_tiny


def test_a_reused_export_is_delivered_too(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with mlflow.start_run() as run:
        _, version = register_tiny(export_tiny(tmp_path / "tiny.onnx"))
        mlflow.set_tag(MODEL_VERSION_TAG, f"{version.name}/{version.version}")
    finished = MlflowClient().get_run(run.info.run_id)
    monkeypatch.setattr(chain, "cache_key", lambda *_: "key")
    monkeypatch.setattr(chain, "find_finished", lambda *_: finished)
    config = Config(data_path="sample", onnx_dir=str(tmp_path / "out"))
    source = open_source(config)
    with mlflow.start_run():
        assert chain._run_or_reuse("train", config, source).reused
        assert not (tmp_path / "out").exists()
        assert chain._run_or_reuse("export_onnx", config, source).reused
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.onnx", "labels.txt", "test_vector.npz"}
    assert f"onnx_dir: {tmp_path / 'out'} has model.onnx" in capsys.readouterr().out


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    config = Config(data_path="sample", onnx_dir=str(tmp_path / "file"))
    with mlflow.start_run(), pytest.raises(UserError, match=r"^onnx_dir: .* it is a file\. Needed"):
        chain.run_chain(config)
