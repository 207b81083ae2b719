"""What users have on their disks and in their registries, made at 71b16d0, still works.

`make_fixtures.py` made the files with the code of that commit, the last one before modules moved
into packages; `expected.json` holds what the same code computed with them.
"""

import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import read_annotations
from k400tiny_lib.export.exporter import describe_model
from k400tiny_lib.export.parity import run_eager
from k400tiny_lib.metrics_log import read_entries
from k400tiny_lib.models.checkpoint import model_of, read_checkpoint, read_training_state
from k400tiny_lib.models.loaded import load_model
from k400tiny_lib.serving.onnx_classifier import open_classifier
from k400tiny_lib.serving.predict import label_inputs
from k400tiny_lib.tracking.models import open_registered
from k400tiny_lib.training.resuming import resolve_checkpoint_paths
from k400tiny_lib.training.state import load_state
from k400tiny_lib.training.worker import TrainingJob, initial_model, make_train_state, run
from tests.compat.inputs import LABELS, noise, write_data
from tests.conftest import REPOSITORY
from tests.helpers.training import CPU

FIXTURES = Path(__file__).parent / "fixtures"
EXPECTED: dict[str, Any] = json.loads((FIXTURES / "expected.json").read_text())
# Float32 on another CPU, or in another release of a library: what export_onnx allows as well.
TOLERANCE = 1e-4
ANSWER = """
import json, sys
import mlflow
model = mlflow.pyfunc.load_model(sys.argv[1], model_config={"video_root": sys.argv[2]})
answer = model.predict([{"path": "video.mkv"}]).to_dict("records")
import k400tiny_lib
print(json.dumps({"answer": answer, "library": k400tiny_lib.__file__}))
"""


def _unpacked(name: str, path: Path) -> Iterator[Path]:
    """An .xz file unpacked; taken away after the tests, for it is large."""
    with lzma.open(FIXTURES / name) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """best.pt of R(2+1)D-18 after an epoch."""
    yield from _unpacked("best.pt.xz", tmp_path_factory.mktemp("best") / "best.pt")


@pytest.fixture(scope="module")
def last(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """last.pt of X3D-S with a moving average, stopped after batch 1 of 3 of epoch 2."""
    yield from _unpacked("last.pt.xz", tmp_path_factory.mktemp("last") / "last.pt")


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a registered ONNX model."""
    return _extracted("onnx_model.tar.xz", tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def video_classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a registered video classifier, with the library of 71b16d0 in it."""
    return _extracted("video_classifier.tar.xz", tmp_path_factory.mktemp("served"))


def _extracted(name: str, folder: Path) -> Path:
    with tarfile.open(FIXTURES / name) as archive:
        archive.extractall(folder, filter="data")
    return folder


def resumed(last: Path, folder: Path) -> tuple[Config, str | None]:
    """The parameters of the stopped training, on the same data, settled as in the step `train`."""
    data_path, annotations, checkpoints = (
        folder / name for name in ("frames", "annotations.json", "checkpoints")
    )
    write_data(data_path)
    shutil.copyfile(FIXTURES / "annotations.json", annotations)
    checkpoints.mkdir()
    former = Config(**read_training_state(last)["config"])
    config = former.replace(
        data_path=str(data_path),
        annotations=str(annotations),
        checkpoint_dir=str(checkpoints),
        resume=str(last.parent),
    )
    return resolve_checkpoint_paths(config, "run-after")


def test_an_old_best_checkpoint_is_read_with_its_epoch_classes_and_parameters(best: Path) -> None:
    checkpoint = read_checkpoint(best, "checkpoint")
    expected = EXPECTED["best"]
    assert checkpoint["epoch"] == expected["epoch"]
    assert checkpoint["categories"] == expected["categories"]
    model, config = model_of(checkpoint, "checkpoint")
    assert type(model).__name__ == "VideoResNet"
    # All of the old parameters are still known by their names; new ones may have come.
    assert config.to_dict().items() >= expected["config"].items()
    torch.testing.assert_close(model.state_dict(), checkpoint["model"], rtol=0, atol=0)


def test_an_old_best_checkpoint_is_exported_and_gives_the_same_probabilities(best: Path) -> None:
    loaded = load_model(Config(checkpoint=str(best)))
    # All that an old reader of the file asks for is still there; new facts may have come.
    assert describe_model(loaded).items() >= EXPECTED["best"]["metadata"].items()
    frames = torch.from_numpy(noise(100, num_frames=4))[None]
    found = run_eager(loaded.model, loaded.geometry, frames)[0]
    expected = EXPECTED["best"]["probabilities"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


def test_a_training_starts_from_the_weights_of_an_old_best_checkpoint(best: Path) -> None:
    config = Config(model="r2plus1d_18", load_model=str(best))
    model = initial_model(config, num_classes=len(LABELS))
    weights = read_checkpoint(best, "load_model")["model"]
    torch.testing.assert_close(model.state_dict(), weights, rtol=0, atol=0)


def test_an_old_last_checkpoint_fills_todays_trainer(last: Path, tmp_path: Path) -> None:
    expected = EXPECTED["last"]
    config, run_id = resumed(last, tmp_path)
    assert (config.resume, run_id) == (str(last), expected["run_id"])
    state = read_training_state(last)
    annotations = read_annotations(Path(config.annotations))
    with torch.random.fork_rng():
        trainer = make_train_state(config, annotations, CPU)
        load_state(trainer, state, "resume")
        assert torch.equal(torch.get_rng_state(), state["processes"][0]["torch_rng"])
    assert (trainer.epoch, trainer.batch) == (expected["finished_epochs"], expected["batch"])
    assert trainer.updates == expected["updates"]
    assert trainer.average is not None
    for loaded, saved in (
        (trainer.model.state_dict(), state["raw_model"]),
        (trainer.average.state_dict(), state["average"]),
        (trainer.evaluated_model.state_dict(), state["model"]),
        (trainer.optimizer.state_dict()["state"], state["optimizer"]["state"]),
        (trainer.meters.sums, state["processes"][0]["meters"]),
    ):
        torch.testing.assert_close(loaded, saved, rtol=0, atol=0)


def test_a_training_stopped_by_the_old_code_ends_as_it_would_have(
    last: Path, tmp_path: Path
) -> None:
    config, _ = resumed(last, tmp_path)
    job = TrainingJob(config, tmp_path, "run-after")
    with torch.random.fork_rng():
        run(job, CPU)
    first, second = [entry for entry, _ in read_entries(job.metrics_log)]
    # The first epoch comes with the checkpoint, so that the curves of the run are whole.
    assert [first.step] == EXPECTED["last"]["journal_steps"]
    assert second.step == 2
    expected = EXPECTED["last"]["metrics_of_epoch_2"]
    # The instructions of other CPUs changed the losses by at most 0.2 %; another batch to start at,
    # lost meters or BatchNorm statistics and another learning rate changed one by 6 % or more.
    assert {key: second.metrics[key] for key in expected} == pytest.approx(expected, rel=0.01)


def test_an_old_onnx_file_opens_and_predicts_the_same(onnx_model: Path) -> None:
    expected = EXPECTED["registered"]
    file = onnx_model / "model.onnx"
    facts = {entry.key: json.loads(entry.value) for entry in onnx.load(file).metadata_props}
    assert facts == expected["metadata"]
    model = open_classifier(file, device="cpu")
    assert (model.class_names, model.clip_len, model.views) == (list(LABELS), 4, 2)
    probabilities = model.predict(noise(101, num_frames=8)[None])
    np.testing.assert_allclose(probabilities[0], expected["probabilities"], rtol=0, atol=TOLERANCE)
    table, failures, _ = label_inputs(model, [FIXTURES / "video.mkv"], 1, top_k=3)
    assert failures == []
    assert list(table["label"]) == expected["served"]["labels"]
    # Today's `predict` brings the frames of a video to the layout of training before the graph
    # scales them, which the copy of the library in an old served model does not.
    np.testing.assert_allclose(
        table["probability"], expected["served"]["probabilities"], rtol=0, atol=0.01
    )


def test_an_old_registered_model_can_be_evaluated_and_challenged(onnx_model: Path) -> None:
    model = open_registered(str(onnx_model), "")
    assert (model.class_names, model.clip_len, model.views) == (list(LABELS), 4, 2)
    probabilities = model.predict(noise(101, num_frames=8)[None])
    np.testing.assert_allclose(
        probabilities[0], EXPECTED["registered"]["probabilities"], rtol=0, atol=TOLERANCE
    )


@pytest.mark.parametrize("where", ["elsewhere", "this checkout"])
def test_an_old_served_model_answers_with_the_code_it_was_logged_with(
    video_classifier: Path, tmp_path: Path, where: str
) -> None:
    # In a new process, as `mlflow models serve` does it: MLflow puts the code of the model in front
    # of sys.path, but Python takes a k400tiny_lib that has been imported before.
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MLFLOW_RUN_ID")}
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(video_classifier), str(FIXTURES)],
        cwd=REPOSITORY if where == "this checkout" else tmp_path,
        env=environment | {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout.splitlines()[-1])
    assert Path(printed["library"]).is_relative_to(video_classifier)
    [answer], expected = printed["answer"], EXPECTED["registered"]["served"]
    assert answer["labels"] == expected["labels"]
    np.testing.assert_allclose(
        answer["probabilities"], expected["probabilities"], rtol=0, atol=TOLERANCE
    )
