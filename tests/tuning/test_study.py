"""A study has exactly as many trials as asked for, whatever happens to its processes."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import Entry
from k400tiny_lib.tuning.study import FINISHED, Outcome, Owner, score
from tests.conftest import REPOSITORY
from tests.helpers.tuning import BEST_LR, OWNER, StandIn, config, tune


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the tables of a storage, which take longer to make than a study."""
    path = tmp_path_factory.mktemp("storage") / "empty.db"
    optuna.storages.RDBStorage(f"sqlite:///{path}")
    return path


@pytest.fixture
def storage(tables: Path, tmp_path: Path) -> str:
    shutil.copy(tables, tmp_path / "study.db")
    return f"sqlite:///{tmp_path}/study.db"


@contextmanager
def in_another_process(storage: str, *arguments: object) -> "Iterator[subprocess.Popen[bytes]]":
    command = [sys.executable, "-m", "tests.helpers.tuning", storage, *map(str, arguments)]
    with subprocess.Popen(command, cwd=REPOSITORY, start_new_session=True) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return study.get_trials(states=FINISHED)


def open_study(storage: str) -> optuna.Study:
    return optuna.load_study(study_name="study", storage=storage)


def wait_for(path: Path, lines: int) -> list[str]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if path.exists() and len(written := path.read_text().splitlines()) >= lines:
            return written
        time.sleep(0.05)
    raise AssertionError(f"{path} has not {lines} lines")


def test_the_first_trial_has_the_given_values_and_the_best_is_better(storage: str) -> None:
    train = StandIn()
    study, mine = tune(config(), train, storage)
    assert len(mine) == len(finished(study)) == 12
    assert study.trials[0].params == {"lr": 0.9}
    assert train.names[0] == "trial 0 · lr 0.9"
    assert study.best_value > study.trials[0].value + 20
    best = train.configs[study.best_trial.number]
    assert best == config(lr=study.best_params["lr"])  # nothing else is changed
    assert study.best_trial.user_attrs["val_acc1"] == pytest.approx(study.best_value, abs=1e-3)


def test_more_trials_continue_a_study_and_fewer_leave_it(storage: str) -> None:
    tune(config(trials=4), StandIn(), storage)
    study, mine = tune(config(trials=6), StandIn(), storage)
    assert (len(mine), len(finished(study))) == (2, 6)
    study, mine = tune(config(trials=3), StandIn(), storage)
    assert (len(mine), len(finished(study))) == (0, 6)


def test_the_same_seed_tries_the_same_values_and_never_one_twice(
    tables: Path, tmp_path: Path
) -> None:
    def values(name: str, **changes: Any) -> list[float]:
        storage = f"sqlite:///{shutil.copy(tables, tmp_path / name)}"
        for trials in (2, 4):  # the second process must not begin with the values of the first
            study, _ = tune(config(trials=trials, **changes), StandIn(), storage)
        return [trial.params["lr"] for trial in study.trials]

    first = values("a")
    assert first == values("b")
    assert len(set(first)) == 4
    assert first[1:] != values("c", seed=1)[1:]


def test_bad_trials_are_pruned_and_the_best_never(storage: str) -> None:
    train = StandIn()
    study, _ = tune(config(trials=16), train, storage)
    pruned = [t for t in study.trials if t.state == TrialState.PRUNED]
    assert pruned
    for trial in pruned:
        assert trial.user_attrs["end"] == "pruned"
        assert 2 <= trial.user_attrs["last_epoch"] == train.epochs[trial.number] < 5
    assert abs(study.best_params["lr"] / BEST_LR - 1) < 0.9


def test_a_training_that_is_over_is_not_pruned_any_more(storage: str) -> None:
    class Sudden(StandIn):
        def __call__(self, config: Config, number: int, name: str, on_epoch: Any) -> Outcome:
            for epoch in (1, 2, 3, 4, 5):
                acc1 = 90.0 if epoch == 5 and number < 5 else 10.0
                assert not on_epoch(Entry(epoch, 0, {"val_acc1": acc1, "val_loss": 1.0}))
            return Outcome(f"run{number}")

    study, _ = tune(config(trials=6), Sudden(), storage)
    assert study.trials[5].state == TrialState.COMPLETE


def test_equal_accuracies_are_told_apart_by_the_loss_and_only_these() -> None:
    better = {"val_acc1": 50.0, "val_loss": 0.5}
    assert score(better) > score({"val_acc1": 50.0, "val_loss": 0.6})
    assert score({"val_acc1": 50.01, "val_loss": 1e9}) > score({"val_acc1": 50.0, "val_loss": 0.0})


def test_a_diverged_trial_counts_as_bad_and_does_not_end_the_study(storage: str) -> None:
    class Diverges(StandIn):
        def __call__(self, config: Config, number: int, *rest: Any) -> Outcome:
            if number == 1:
                return Outcome("run1", "diverged")
            return super().__call__(config, number, *rest)

    study, _ = tune(config(trials=4), Diverges(), storage)
    assert study.trials[1].state == TrialState.PRUNED
    assert len(finished(study)) == 4
    assert study.best_trial.number != 1


def test_a_failure_for_another_reason_ends_the_study_and_does_not_count(storage: str) -> None:
    def fail(number: int, config: Config) -> None:
        if number == 2:
            raise UserError("data_path: nothing is there.")

    with pytest.raises(UserError, match=r"^data_path: nothing is there\.$"):
        tune(config(trials=4), StandIn(fail), storage)
    assert [t.state for t in open_study(storage).trials][2:] == [TrialState.FAIL]
    study, mine = tune(config(trials=4), StandIn(), storage)
    assert (len(mine), len(finished(study))) == (2, 4)


def test_the_values_of_an_interrupted_trial_are_tried_again_once(storage: str) -> None:
    def interrupt(number: int, config: Config) -> None:
        if number in (1, 2):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            tune(config(trials=4), StandIn(interrupt), storage)
    study, _ = tune(config(trials=4), StandIn(), storage)
    trials = study.trials
    assert [t.state for t in trials[1:3]] == [TrialState.FAIL] * 2
    assert trials[1].params == trials[2].params != trials[3].params
    assert len(finished(study)) == 4


def test_a_study_that_is_killed_goes_on_where_it_was(storage: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with in_another_process(storage, 10, log, 7) as process:
        lines = wait_for(log, 8)
        os.killpg(process.pid, signal.SIGKILL)
    study, mine = tune(config(trials=10, num_epochs=1), StandIn(), storage)
    trials = study.trials
    assert len(mine) == 3
    assert [t.number for t in trials if t.state == TrialState.FAIL] == [7]
    assert len(finished(study)) == 10
    assert trials[8].params["lr"] == float(lines[7].split()[2])  # those of trial 7


def test_a_process_with_nothing_left_to_do_takes_over_from_one_that_dies(
    storage: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with in_another_process(storage, 5, log, 4) as process:
        wait_for(log, 5)  # its last trial hangs

        looks = iter(range(10))

        def has_ended(name: str) -> bool:
            if next(looks) == 2:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            return OWNER.has_ended(name)

        study, mine = tune(config(trials=5), StandIn(), storage, Owner("me", has_ended))
    assert (len(mine), len(finished(study))) == (1, 5)
    assert len(study.trials) == 6  # it has waited without beginning others


def test_processes_share_the_trials_of_one_storage(storage: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    sharing = in_another_process(storage, 16, log), in_another_process(storage, 16, log)
    with sharing[0] as first, sharing[1] as second:
        assert (first.wait(60), second.wait(60)) == (0, 0)
    study = open_study(storage)
    assert len(finished(study)) == 16
    shares = [int(line.split()[0]) for line in log.read_text().splitlines()]
    assert len(shares) <= 16
    assert set(shares) == {first.pid, second.pid}
    assert not study.get_trials(states=(TrialState.RUNNING,))


def test_of_two_that_begin_the_last_trial_at_once_the_second_gives_up(
    storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(trials=3)
    tune(config(trials=2), StandIn(), storage)
    original, asked = optuna.Study.optimize, []

    def late(study: optuna.Study, *arguments: Any, **options: Any) -> None:
        if not asked:  # another process begins the third trial just before this one
            other = open_study(storage)
            asked.append(other.ask())
            original(study, *arguments, **options)
            other.tell(asked[0], 1.0)
        else:
            original(study, *arguments, **options)

    monkeypatch.setattr(optuna.Study, "optimize", late)
    train = StandIn()
    study, mine = tune(settings, train, storage)
    assert (mine, train.configs) == ([], {})
    assert [t.state for t in study.trials[2:]] == [TrialState.COMPLETE, TrialState.FAIL]
