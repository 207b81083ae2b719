"""Who becomes champion, on a real registry."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Barrier

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from sklearn.metrics import accuracy_score, log_loss

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.comparison import compare_predictions
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.files import problem_of
from k400tiny_lib.registry import promotion
from k400tiny_lib.registry.promotion import (
    Promotion,
    PromotionDecision,
    champion_of,
    compare_to_champion,
    make_challenger,
    make_champion,
    promote,
    ranking_key,
    set_alias,
    version_with,
)
from k400tiny_lib.registry.registry import DECISION_TAG, log_onnx, register
from k400tiny_lib.registry.video_model import follow_champion
from k400tiny_lib.tracking import models
from tests.conftest import LABELS, REPOSITORY
from tests.helpers.evaluation import random_table, write_annotated_clips
from tests.helpers.export import METADATA, toy_graph
from tests.helpers.race_worker import NAME, export, promotion_of


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
        right, loss = ranking_key(table)
        assert right / len(table) == accuracy_score(table["target"], table["predicted"])
        assert -loss == pytest.approx(
            log_loss(table["target"], probabilities_of(table), labels=range(7)), abs=1e-4
        )
    promoted = [[compare_to_champion(a, b, "it").promoted for b in tables] for a in tables]
    assert promoted == [[False] * 3, [True, False, False], [True, True, False]]
    assert "80.0 % against 50.0 %" in compare_to_champion(tables[1], tables[0], "it").reason


def test_no_difference_is_plus_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    table = right_on(0.5)
    paired = replace(
        compare_predictions(table, table["predicted"], table["predicted"]),
        difference=-0.0,
        low=-0.04,
        high=-1e-15,
    )
    monkeypatch.setattr(promotion, "compare_predictions", lambda *tables: paired)
    reason = compare_to_champion(table, table, "it").reason
    assert "(difference +0.0, 95 % interval +0.0 to +0.0, " in reason


def test_a_better_version_takes_the_name_and_a_worse_one_does_not(store: str) -> None:
    client = MlflowClient()
    for share, expected in ((0.5, "1"), (0.8, "2"), (0.7, "2"), (0.8, "2"), (0.9, "5")):
        decision = export(promotion_of(right_on(share)))
        assert champion() == expected
        newest = client.get_model_version_by_alias(NAME, "challenger")
        assert decision.promoted == (
            newest.version == client.get_model_version_by_alias(NAME, "champion").version
        )
        assert newest.tags[DECISION_TAG] == decision.text
    # After rolling back by hand, the next one is measured against what was chosen.
    make_champion(NAME, "1", champion())
    assert str(client.get_model_version_by_alias(NAME, "previous").version) == "5"
    assert export(promotion_of(right_on(0.6))).promoted


@pytest.mark.parametrize("first", ["better", "worse"])
@pytest.mark.slow
def test_two_exports_at_once_end_with_the_better_one_whatever_their_order(
    store: str, tmp_path: Path, first: str
) -> None:
    """The worse one compares so long that it sets its alias last, if it does not look again."""
    export(promotion_of(right_on(0.3)))
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
    tags = client.get_model_version(NAME, champion()).tags
    assert "90.0 % against" in tags[DECISION_TAG]


@dataclass(frozen=True)
class InStep(Promotion):
    """Waits after its first decision, so that two exports set the alias at the same moment."""

    barrier: Barrier = field(default_factory=lambda: Barrier(1))

    def decide(self, champion: str | None) -> PromotionDecision:
        decision = super().decide(champion)
        if champion == "1":
            self.barrier.wait(30)
        return decision


def test_two_exports_that_set_the_alias_at_the_same_moment_end_with_the_better_one(
    store: str,
) -> None:
    tables = [right_on(share) for share in (0.3, 0.9, 0.6)]
    for table in tables:  # version 1 becomes champion, for there is none
        export(promotion_of(table, "never"))
    barrier = Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        promotions = [InStep(**vars(promotion_of(table)), barrier=barrier) for table in tables[1:]]
        better, _ = pool.map(promote, ("2", "3"), promotions)
    assert champion() == "2"
    assert better.promoted


@pytest.mark.parametrize("added_by_another", [True, False])
def test_an_alias_that_another_process_adds_at_the_same_moment_is_set_all_the_same(
    store: str, monkeypatch: pytest.MonkeyPatch, added_by_another: bool
) -> None:
    for _ in range(2):
        export(promotion_of(right_on(0.5)))
    set_it = MlflowClient.set_registered_model_alias

    def fail_once(client: MlflowClient, name: str, alias: str, version: str) -> None:
        """What MLflow's SQL store does where another process adds the row after it has looked."""
        monkeypatch.setattr(MlflowClient, "set_registered_model_alias", set_it)
        if added_by_another:
            set_it(client, name, alias, "1")
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed")

    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", fail_once)
    if added_by_another:
        set_alias(NAME, "raced", "2")
        assert version_with("raced", NAME) == "2"
    else:
        with pytest.raises(MlflowException, match="UNIQUE"):
            set_alias(NAME, "raced", "2")


class Interrupted(Promotion):
    def decide(self, champion: str | None) -> PromotionDecision:
        raise KeyboardInterrupt


def test_an_export_that_is_interrupted_does_not_block_the_next(store: str) -> None:
    export(promotion_of(right_on(0.5)))
    with pytest.raises(KeyboardInterrupt):
        export(Interrupted(**vars(promotion_of(right_on(0.9)))))
    assert champion() == "1"
    tags = mlflow.MlflowClient().get_model_version(NAME, "2").tags
    assert tags[DECISION_TAG] == "challenger: interrupted before it was compared"
    assert export(promotion_of(right_on(0.6))).promoted


def test_the_newest_version_is_challenger_whichever_export_ends_last(store: str) -> None:
    for _ in range(3):
        export(promotion_of(right_on(0.5)))
    mlflow.MlflowClient().set_registered_model_alias(NAME, "challenger", "2")
    make_challenger(NAME)
    newest = mlflow.MlflowClient().get_model_version_by_alias(NAME, "challenger")
    assert int(newest.version) == 3


def test_an_outage_is_not_taken_for_a_registry_without_a_champion(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert champion_of(NAME) is None
    with pytest.raises(UserError, match="no champion to follow"):
        follow_champion(NAME, "video")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri("http://127.0.0.1:1")  # the fixture sets it back
    for ask in (lambda: champion_of(NAME), lambda: follow_champion(NAME, "video")):
        with pytest.raises(MlflowException, match="API request"):
            ask()


def test_a_champion_of_other_clips_is_scored_on_these_and_one_of_other_classes_stays(
    store: str, tmp_path: Path
) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=6)
    clips = ExportClips(annotations, data_path, 4, 1)
    with mlflow.start_run():
        uri = log_onnx(toy_graph(), METADATA)
        register(uri, Promotion("better", NAME, clips), {"test_digest": "x"})
    table = clips.predictions(lambda frames: np.eye(3, dtype=np.float32)[[0]] * 0.98 + 0.01)
    assert list(table["predicted"]) == [0] * 6
    toy = clips.predictions(
        lambda frames: np.exp(m := frames.numpy().mean((1, 2, 3))) / np.exp(m).sum(1, keepdims=True)
    )
    decision = Promotion("better", NAME, clips, table).decide("1")
    theirs = 100 * (toy["predicted"] == toy["target"]).mean()
    assert f"33.3 % against {theirs:.1f} % of version 1 on the same 6 clips" in decision.reason

    others = Annotations({f"x{label}": i for i, label in enumerate(LABELS)}, annotations.splits)
    strange = Promotion("better", NAME, ExportClips(others, data_path, 4, 1), table).decide("1")
    assert (strange.promoted, "does not know 'xgrowing'" in strange.reason) == (False, True)
    unscored = Promotion("better", NAME, clips, None, "there are no annotations").decide("1")
    assert unscored.text.startswith("challenger: there are no annotations")


def model_folder(version: str) -> Path:
    source = MlflowClient().get_model_version(NAME, version).source
    return Path(MlflowClient().get_logged_model(source.removeprefix("models:/")).artifact_location)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def remove_graph(folder: Path) -> None:
    (folder / "model.onnx").unlink()


def truncate_graph(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:100])


@pytest.mark.parametrize("damage", [remove, remove_graph, truncate_graph])
def test_a_champion_that_cannot_be_loaded_loses(store: str, damage: Callable[[Path], None]) -> None:
    export(promotion_of(right_on(0.9)))
    damage(model_folder("1"))
    unscored = replace(promotion_of(right_on(0.5)), predictions=None)
    assert unscored.decide("1").promoted
    decision = export(promotion_of(right_on(0.5)))
    assert champion() == "2"
    start = "champion: the champion, version 1, cannot be loaded ("
    assert decision.text.startswith(start)
    assert MlflowClient().get_model_version(NAME, "2").tags[DECISION_TAG] == decision.text


def lock(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(path: Path) -> str:
        return "cannot be read: Permission denied" if path == folder else problem_of(path)

    shutil.rmtree(folder)  # a folder that may not be read lists nothing either
    monkeypatch.setattr(models, "problem_of", problem)


def unmount(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder.parents[2]
    shutil.move(root, root.with_name("unmounted"))


def cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("Connection refused")

    for name in ("download_artifacts", "list_artifacts"):
        monkeypatch.setattr(mlflow.artifacts, name, refuse)


@pytest.mark.parametrize("outage", [lock, unmount, cut_off])
def test_a_champion_that_cannot_be_reached_at_the_moment_stays(
    store: str, monkeypatch: pytest.MonkeyPatch, outage: Callable[[Path, pytest.MonkeyPatch], None]
) -> None:
    export(promotion_of(right_on(0.5)))
    outage(model_folder("1"), monkeypatch)
    decision = promotion_of(right_on(0.9)).decide("1")
    assert not decision.promoted
    assert decision.reason.startswith("it cannot be compared with version 1: ")
    assert "promote decides by hand" in decision.reason
    assert (decision.reason.count("Needed:"), decision.reason.count("..")) == (1, 0)
