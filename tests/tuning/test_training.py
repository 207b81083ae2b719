"""A trial's training: a nested run that is stopped cleanly and leaves no checkpoints."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from k400tiny_lib.config import Config
from k400tiny_lib.config.mlproject import mlproject_text
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import Entry, append_entry
from k400tiny_lib.tracking.runs import ERROR_TAG
from k400tiny_lib.training import loop
from k400tiny_lib.tuning import training
from k400tiny_lib.tuning.training import PRUNED_TAG, NestedTraining
from k400tiny_lib.workflow import chain
from tests.conftest import REPOSITORY

STAND_IN = """
import time
from pathlib import Path
from k400tiny_lib.metrics_log import append_entry
from k400tiny_lib.workflow.command import step_command

@step_command("train")
def train(config):
    print("an epoch for each quarter of a second")
    Path(config.checkpoint_dir, "last.pt").write_bytes(b"weights")
    for epoch in range(1, config.num_epochs + 1):
        log = Path(config.checkpoint_dir, "metrics-run.jsonl")
        append_entry(log, {"val_acc1": 10.0 * epoch, "val_loss": 1.0}, epoch)
        time.sleep(0.25)

train()
"""


def never(entry: Entry) -> bool:
    return False


def test_a_pruned_training_is_stopped_and_its_run_killed_without_a_trace_on_the_disk(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "project" / "steps").mkdir(parents=True)
    (tmp_path / "project" / "MLproject").write_text(mlproject_text())
    for name in ("conda.yaml", "steps/__init__.py"):
        shutil.copy(REPOSITORY / name, tmp_path / "project" / name)
    (tmp_path / "project" / "steps" / "train.py").write_text(STAND_IN)
    (tmp_path / "annotations.json").write_text("{}")
    monkeypatch.setattr(chain, "ROOT", tmp_path / "project")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    given = {"data_path": str(tmp_path), "annotations": str(tmp_path / "annotations.json")}
    config = Config(**given, num_epochs=1000)
    seen: list[int] = []

    def stop_after_the_second(entry: Entry) -> bool:
        seen.append(entry.step)
        return entry.step >= 2

    with mlflow.start_run() as parent:
        for name in ("killed", "alive"):
            (tmp_path / "checkpoints" / f"tune-{name}").mkdir(parents=True)
        (tmp_path / "checkpoints" / "mine").mkdir()
        has_ended = {"killed": True, "alive": False}.__getitem__
        train = NestedTraining(parent, str(tmp_path / "checkpoints"), has_ended)
        outcome = train(config, 7, "trial 7 · lr 0.01", stop_after_the_second)
    assert outcome.end == "pruned"
    run = MlflowClient().get_run(outcome.run_id)
    assert run.info.status == "KILLED"
    assert run.info.run_name == "trial 7 · lr 0.01 · pruned"
    assert run.data.tags[PRUNED_TAG] == "after epoch 2"
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert ERROR_TAG not in run.data.tags
    assert seen == list(range(1, len(seen) + 1))
    left = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {"tune-alive", "mine"}
    assert "quarter of a second" not in "".join(capfd.readouterr())


@pytest.fixture
def nested(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., training.Outcome]:
    """Train a trial, where the nested run of train is a function of its directory."""

    def train(step: Callable[[Path], object], on_epoch: Any = never) -> training.Outcome:
        def run_nested(name: str, config: Config, parent: Run, run_name: str) -> Run:
            folder = Path(config.checkpoint_dir)
            (folder / "best.pt").write_bytes(b"weights")
            client = MlflowClient()
            run = client.create_run("0", run_name=run_name)
            if reason := step(folder):
                client.set_tag(run.info.run_id, ERROR_TAG, reason)
                raise chain.StepFailed("train", client.get_run(run.info.run_id))
            return run

        monkeypatch.setattr(training, "run_nested", run_nested)
        with mlflow.start_run() as parent:
            nested = NestedTraining(parent, str(tmp_path / "ck"), lambda run_id: False)
            return nested(Config(), 7, "trial 7", on_epoch)

    return train


def test_however_a_training_ends_every_epoch_counts_and_only_an_unknown_failure_leaves_files(
    nested: Callable[..., training.Outcome], tmp_path: Path
) -> None:
    def two_epochs(folder: Path) -> None:
        for epoch, acc1 in ((1, 60.0), (2, 50.0)):
            append_entry(folder / "metrics-a.jsonl", {"val_acc1": acc1, "val_loss": 1.0}, epoch)

    seen: list[Entry] = []
    outcome = nested(two_epochs, lambda entry: seen.append(entry) or True)
    assert [entry.step for entry in seen] == [1, 2]
    assert outcome.end == "finished"  # it was over before it could be stopped
    assert MlflowClient().get_run(outcome.run_id).info.run_name == "trial 7 · 60.0 %"
    assert not any((tmp_path / "ck").iterdir())

    def interrupt(folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nested(interrupt)
    assert not any((tmp_path / "ck").iterdir())

    with pytest.raises(ZeroDivisionError):  # of the study's storage, say
        nested(two_epochs, lambda entry: 1 / 0)

    with pytest.raises(UserError, match=r"^trial 7: train failed \(run .*\): no room\. Its output"):
        nested(lambda folder: "no room")
    assert list((tmp_path / "ck").glob("*/trial-7/output.log"))


def test_the_messages_of_a_training_that_diverges_make_a_bad_trial() -> None:
    state: Any = SimpleNamespace(
        config=Config(),
        epoch=0,
        batch=1,
        train_loader=[1, 2],
        process=SimpleNamespace(gather=lambda value: [value]),
    )
    clips: Any = SimpleNamespace(clips=[SimpleNamespace(video="a")])
    losses = [(1, torch.tensor(torch.nan), torch.tensor([0]))]
    run: Any = SimpleNamespace(info=SimpleNamespace(run_id="run"))
    for message in (
        loop._describe_bad(state, clips, losses),
        loop._describe_broken(state, "fc.weight is not finite"),
    ):
        outcome = training._outcome(run, message, None)
        assert outcome is not None
        assert outcome.end == "diverged"
