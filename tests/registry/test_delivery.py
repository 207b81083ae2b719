"""The registered file, its labels and its test vector in a directory of the user's choice."""

from pathlib import Path

import fsspec
import mlflow
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.registry.delivery import deliver
from k400tiny_lib.registry.registry import COMPANIONS
from k400tiny_lib.remote_files import check_writable
from tests.helpers.serving import NAME, export_tiny, register_tiny

NAMES = ["labels.txt", "model.onnx", "test_vector.npz"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_the_directory_has_the_registered_files(
    store: str, tmp_path: Path, tiny: Path, kind: str
) -> None:
    with mlflow.start_run() as run:
        uri, version = register_tiny(tiny)
    target = {"path": "out/deep", "file": f"file://{tmp_path}/o", "memory": "memory://out/deep"}
    target = target[kind]
    check_writable(target, "onnx_dir")
    line = deliver(version, target)
    assert "\n" not in line
    assert all(name in line for name in (*NAMES, f"models:/{NAME}/{version.version}"))
    files, root = fsspec.core.url_to_fs(target)
    assert sorted(Path(path).name for path in files.find(root)) == NAMES
    registered = Path(mlflow.artifacts.download_artifacts(uri))
    assert files.cat_file(f"{root}/model.onnx") == (registered / "model.onnx").read_bytes()
    for name in ("labels.txt", "test_vector.npz"):
        stored = mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{COMPANIONS}/{name}")
        content = files.cat_file(f"{root}/{name}")
        assert content == Path(stored).read_bytes()
        assert content == (registered / "extra_files" / name).read_bytes()


def test_a_second_export_replaces_the_files_even_of_the_same_size(
    store: str, tmp_path: Path, tiny: Path
) -> None:
    with mlflow.start_run():
        _, version = register_tiny(tiny)
    for target in (str(tmp_path / "out"), "memory://again"):
        deliver(version, target)
        files, root = fsspec.core.url_to_fs(target)
        right = files.cat_file(f"{root}/model.onnx")
        files.pipe_file(f"{root}/model.onnx", bytes(len(right)))
        deliver(version, target)
        assert files.cat_file(f"{root}/model.onnx") == right


def test_the_signature_of_the_model_and_its_test_vector_fit(
    store: str, tmp_path: Path, tiny: Path
) -> None:
    with mlflow.start_run():
        uri, version = register_tiny(tiny)
    deliver(version, str(tmp_path / "out"))
    vector = np.load(tmp_path / "out" / "test_vector.npz")
    answered = mlflow.pyfunc.load_model(uri).predict({"frames": vector["frames"]})
    np.testing.assert_allclose(answered["probabilities"], vector["probabilities"], atol=1e-6)


def test_a_directory_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "below", "/proc/none"):
        with pytest.raises(UserError, match=r"^onnx_dir: .*cannot be written: .* Needed: a direct"):
            check_writable(str(target), "onnx_dir")
    for target in ("nosuch://bucket/x", "http://127.0.0.1:9/x"):
        with pytest.raises(UserError, match=rf"^onnx_dir: {target} cannot be used: ."):
            check_writable(target, "onnx_dir")


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    for target in (str(tmp_path / "new"), "memory://checked"):
        check_writable(target, "onnx_dir")
        files, root = fsspec.core.url_to_fs(target)
        assert files.isdir(root)
        assert files.find(root) == []
