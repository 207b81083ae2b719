"""Who becomes champion, on a real registry."""

import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from sklearn.metrics import accuracy_score, log_loss

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.test_clips import ClipFrames
from k400tiny_lib.registry import registry
from k400tiny_lib.registry.contest import Contest
from k400tiny_lib.registry.promotion import judge, strength
from k400tiny_lib.registry.registry import log_onnx, register
from tests.conftest import LABELS, REPOSITORY
from tests.helpers.evaluation import random_table, write_annotated_clips
from tests.helpers.export import METADATA, toy_graph
from tests.helpers.race_worker import NAME, export


def right_on(share: float) -> pd.DataFrame:
    """The same clips each time, and predictions that are right on this share of them."""
    table = random_table(seed=0)
    number = round(share * len(table))
    targets = table["target"].to_numpy()
    predicted = np.where(np.arange(len(table)) < number, targets, (targets + 1) % 7)
    table["predicted"] = predicted
    names = [column for column in table if column.startswith("prob_")]
    table[names] = np.where(np.eye(7)[predicted] == 1, 0.7, 0.05)
    return table


def champion() -> str:
    return str(MlflowClient().get_model_version_by_alias(NAME, "champion").version)


def test_models_are_ordered_by_accuracy_and_then_by_loss() -> None:
    tables = [right_on(share) for share in (0.5, 0.8)]
    sharper = tables[1].copy()
    names = [column for column in sharper if column.startswith("prob_")]
    sharper[names] = np.where(sharper[names] > 0.5, 0.76, 0.04)
    tables.append(sharper)
    for table in tables:
        right, loss = strength(table)
        assert right / len(table) == accuracy_score(table["target"], table["predicted"])
        assert -loss == pytest.approx(
            log_loss(table["target"], probabilities_of(table), labels=range(7)), abs=1e-4
        )
    verdicts = [[judge(a, b, "it").promoted for b in tables] for a in tables]
    assert verdicts == [[False] * 3, [True, False, False], [True, True, False]]
    assert "80.0 % against 50.0 %" in judge(tables[1], tables[0], "it").reason


def test_a_better_version_takes_the_name_and_a_worse_one_does_not(store: str) -> None:
    client = MlflowClient()
    for share, expected in ((0.5, "1"), (0.8, "2"), (0.7, "2"), (0.8, "2"), (0.9, "5")):
        verdict = export(right_on(share))
        assert champion() == expected
        newest = client.get_model_version_by_alias(NAME, "challenger")
        assert verdict.promoted == (
            newest.version == client.get_model_version_by_alias(NAME, "champion").version
        )
        assert newest.tags[registry.DECISION_TAG] == verdict.text
    # After rolling back by hand, the next one is measured against what was chosen.
    rollback()
    assert champion() == "1"
    assert export(right_on(0.6)).promoted


def rollback() -> None:
    """The README's command for it, as it stands there but for the model's name."""
    lines = (REPOSITORY / "README.md").read_text().splitlines()
    [command] = [line for line in lines if "set_registered_model_alias" in line]
    command = command.replace("k400tiny-r2plus1d_18", NAME).replace("python", sys.executable, 1)
    subprocess.run(command, shell=True, check=True)


@pytest.mark.parametrize("first", ["better", "worse"])
@pytest.mark.slow
def test_two_exports_at_once_end_with_the_better_one_whatever_their_order(
    store: str, tmp_path: Path, first: str
) -> None:
    """The worse one takes so long that, were they not in turn, it would have the last word."""
    export(right_on(0.3))
    workers = {}
    for name, share, seconds in (("better", 0.9, "0.5"), ("worse", 0.6, "2")):
        right_on(share).to_csv(tmp_path / f"{name}.csv", index=False)
        workers[name] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.helpers.race_worker",
                str(tmp_path / f"{name}.csv"),
                seconds,
                str(tmp_path / f"{name}.go"),
            ],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            text=True,
            stdout=subprocess.PIPE,
        )
    for worker in workers.values():
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    (tmp_path / f"{first}.go").touch()
    deadline = time.monotonic() + 30
    client = MlflowClient()
    while len(client.search_model_versions(f"name = '{NAME}'")) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    for name in workers:
        (tmp_path / f"{name}.go").touch()
    for worker in workers.values():
        assert worker.wait(timeout=60) == 0
    found = client.get_model_version(NAME, champion())
    assert "90.0 % against" in found.tags[registry.DECISION_TAG]


def test_an_export_that_was_killed_does_not_block_the_next_for_ever(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_PATIENCE_S", 0.5)
    export(right_on(0.5))
    client = MlflowClient()
    client.set_model_version_tag(NAME, "1", registry.DECISION_TAG, "pending")
    assert export(right_on(0.6)).promoted
    assert client.get_model_version(NAME, "1").tags[registry.DECISION_TAG] != "pending"


def test_an_export_that_is_interrupted_leaves_the_queue(store: str) -> None:
    export(right_on(0.5))

    def interrupted(version: str) -> None:
        raise KeyboardInterrupt

    with mlflow.start_run(), pytest.raises(KeyboardInterrupt):
        register(log_onnx(toy_graph(), METADATA), NAME, {}, "better", interrupted)
    assert champion() == "1"
    assert export(right_on(0.6)).promoted


def test_a_champion_of_other_clips_is_scored_on_these_and_one_of_other_classes_stays(
    store: str, tmp_path: Path
) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=6)
    frames = ClipFrames(annotations, data_path, 4, 1)
    with mlflow.start_run():
        register(log_onnx(toy_graph(), METADATA), NAME, {"test_digest": "x"}, "better", str)
    table = frames.predictions(lambda clip: np.eye(3, dtype=np.float32)[[0]] * 0.98 + 0.01)
    assert list(table["predicted"]) == [0] * 6
    toy = frames.predictions(
        lambda clip: np.exp(m := clip.mean((1, 2, 3))) / np.exp(m).sum(1, keepdims=True)
    )
    verdict = Contest(NAME, frames, table, "").against("1")
    theirs = 100 * (toy["predicted"] == toy["target"]).mean()
    assert f"33.3 % against {theirs:.1f} % of version 1 on the same 6 clips" in verdict.reason

    others = Annotations({f"x{label}": i for i, label in enumerate(LABELS)}, annotations.splits)
    strange = Contest(NAME, ClipFrames(others, data_path, 4, 1), table, "").against("1")
    assert (strange.promoted, "does not know 'xgrowing'" in strange.reason) == (False, True)
    unmeasured = Contest(NAME, frames, None, "there are no annotations").against("1")
    assert unmeasured.text.startswith("challenger: there are no annotations")
