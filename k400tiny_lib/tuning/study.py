"""The trials of a study: as many as are still missing, together with other processes."""

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import optuna
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, Trial, TrialState

from k400tiny_lib.config import Config
from k400tiny_lib.config.declaration import Range
from k400tiny_lib.config.search import search_ranges
from k400tiny_lib.metrics_log import Entry
from k400tiny_lib.tuning.storage import GRACE_SECONDS, give_up, retry

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_OWNER = "owner"  # attribute of a trial: the process that runs it
_RANDOM_TRIALS = 5  # before the sampler learns from them


@dataclass(frozen=True)
class Outcome:
    """How the training of a trial has ended.

    Attributes:
        run_id: its MLflow run.
        end: "pruned" if it was stopped because others were better, "diverged" if its loss was not
            finite.
    """

    run_id: str
    end: Literal["finished", "pruned", "diverged"] = "finished"


class Train(Protocol):
    """Trains for one trial, in a nested run."""

    def __call__(
        self, config: Config, number: int, name: str, on_epoch: Callable[[Entry], bool]
    ) -> Outcome:
        """Train.

        Args:
            config: the parameters of train.
            number: of the trial.
            name: of the nested run.
            on_epoch: to be called with the metrics of each epoch, once; returns whether training
                is to stop.

        Raises:
            UserError: if training failed for another reason than the values of the trial.
        """


@dataclass(frozen=True)
class Owner:
    """The process that runs trials.

    Attributes:
        name: of this process.
        has_ended: whether that of another name is known to be gone; its heartbeats say so, too, but
            a minute later.
    """

    name: str
    has_ended: Callable[[str], bool]


class _Surplus(Exception):
    """Another process has begun the last trial at the same time."""


def score(metrics: Mapping[str, float]) -> float:
    """What trials are compared by: val_acc1, and where it is equal, the smaller val_loss.

    The loss takes less than 0.001 points off, less than one clip in 100,000.
    """
    return metrics["val_acc1"] - 1e-3 * metrics["val_loss"] / (1 + metrics["val_loss"])


def shown(params: Mapping[str, Any]) -> str:
    """The values of a trial for people: "lr 0.003, optimizer sgd"."""
    return ", ".join(
        f"{n} {v:.3g}" if isinstance(v, float) else f"{n} {v}" for n, v in params.items()
    )


def run_trials(
    study: optuna.Study,
    config: Config,
    train: Train,
    owner: Owner,
    on_trial: Callable[[FrozenTrial], None],
    poll_seconds: float = 1.0,
) -> None:
    """Run trials until `trials` of them have finished, in whatever process.

    Trials of processes that are gone do not count; their values are tried once more.

    Args:
        study: from `open_study`.
        config: the parameters of tune with the inputs of train.
        train: what a trial is.
        owner: this process.
        on_trial: called with each trial of this process that has finished.
        poll_seconds: time between two looks at the trials of other processes.

    Raises:
        UserError: as `train` does.
    """
    ranges = search_ranges(config.search)
    start = {n: getattr(config, n) for n, tried in ranges.items() if getattr(config, n) in tried}
    if start:  # the result is then never worse than what the recipe says
        study.enqueue_trial(start, skip_if_exists=True)
    watch, waiting = _Watch(study, owner), False
    while True:
        watch.fail_dead()
        trials = study.get_trials(deepcopy=False)
        finished = sum(t.state in FINISHED for t in trials)
        running = sum(t.state == TrialState.RUNNING for t in trials)
        if finished >= config.trials:
            return
        if finished + running >= config.trials:
            if not waiting:
                print(f"waiting for {running} trial(s) of other processes", flush=True)
            waiting = True
            time.sleep(poll_seconds)
            continue
        waiting = False
        number = _run_one(study, config, ranges, train, owner)
        if number is not None:
            on_trial(study.trials[number])


def _run_one(
    study: optuna.Study, config: Config, ranges: Mapping[str, Range], train: Train, owner: Owner
) -> int | None:
    """Run one trial; returns its number, None if it does not count."""
    numbers = []

    def objective(trial: Trial) -> float:
        numbers.append(trial.number)
        trial.set_user_attr(_OWNER, owner.name)
        if _rank(study, trial) >= config.trials:
            raise _Surplus
        return _objective(trial, config, ranges, train)

    try:
        study.optimize(objective, n_trials=1, catch=(_Surplus,))
    except ValueError:
        # This process was suspended for so long that another took it for dead.
        if not numbers or study.trials[numbers[0]].state != TrialState.FAIL:
            raise
    number: int = numbers[0]
    return number if study.trials[number].state in FINISHED else None


def _rank(study: optuna.Study, trial: Trial) -> int:
    """How many trials that count, or may count, were begun before this one."""
    others = study.get_trials(deepcopy=False)
    return sum(t.state != TrialState.FAIL and t.number < trial.number for t in others)


def _objective(trial: Trial, config: Config, ranges: Mapping[str, Range], train: Train) -> float:
    study = trial.study
    # The same trials again for the same seed, and others in each process and after a continuation.
    # Optuna samples when the first value is asked for, so this sampler is in time.
    digest = hashlib.blake2b(f"{config.seed}:{trial.number}".encode(), digest_size=4)
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=_RANDOM_TRIALS, seed=int.from_bytes(digest.digest())
    )
    params = {name: _suggest(trial, name, tried) for name, tried in ranges.items()}
    epochs: list[Entry] = []

    def on_epoch(entry: Entry) -> bool:
        epochs.append(entry)
        trial.report(score(entry.metrics), entry.step)
        # The last epoch is over when it is reported; stopping it would save nothing.
        return entry.step < config.num_epochs and trial.should_prune()

    name = f"trial {trial.number} · {shown(params)}"
    try:
        outcome = train(config.replace(**params), trial.number, name, on_epoch)
    except KeyboardInterrupt:
        retry(study, study.trials[trial.number])
        raise
    # The epoch that training keeps as its best: of equal ones the later.
    best = max(epochs, key=lambda e: (e.metrics["val_acc1"], e.step), default=None)
    trial.set_user_attr("run_id", outcome.run_id)
    trial.set_user_attr("end", outcome.end)
    if best is not None:
        trial.set_user_attr("epoch", best.step)
        trial.set_user_attr("last_epoch", epochs[-1].step)
        for metric in ("val_acc1", "val_loss"):
            trial.set_user_attr(metric, best.metrics[metric])
    if outcome.end != "finished" or best is None:
        # To the sampler, values that were not trained to the end are worse than all others.
        raise TrialPruned
    return score(best.metrics)


def _suggest(trial: Trial, name: str, tried: Range) -> Any:
    if tried.choices:
        return trial.suggest_categorical(name, tried.choices)
    if tried.whole:
        return trial.suggest_int(name, int(tried.low), int(tried.high))
    return trial.suggest_float(name, tried.low, tried.high, log=tried.log)


class _Watch:
    """Finds trials that count as running although their process is gone."""

    def __init__(self, study: optuna.Study, owner: Owner) -> None:
        self._study, self._owner = study, owner
        self._first_seen: dict[int, float] = {}  # of trials that have not said whose they are

    def fail_dead(self) -> None:
        """End them as failed."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        for trial in running:
            owner = trial.user_attrs.get(_OWNER)
            if owner is None:
                seen = self._first_seen.setdefault(trial.number, time.monotonic())
                is_dead = time.monotonic() - seen > GRACE_SECONDS
            else:
                is_dead = self._owner.has_ended(owner)
            # Another process may have done it meanwhile.
            with suppress(ValueError, UpdateFinishedTrialError):
                if is_dead:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    give_up(self._study, trial)
        optuna.storages.fail_stale_trials(self._study)
