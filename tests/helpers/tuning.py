"""A study with a stand-in for training, in this process or in others that can be killed.

python -m tests.helpers.tuning <storage> <trials> <log> [<trial that hangs>]
"""

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import psutil
from optuna.trial import FrozenTrial
from sqlalchemy import Engine, event

from k400tiny_lib.config import Config
from k400tiny_lib.metrics_log import Entry
from k400tiny_lib.tuning.storage import open_storage, open_study
from k400tiny_lib.tuning.study import Outcome, Owner, run_trials

OWNER = Owner(str(os.getpid()), lambda pid: not psutil.pid_exists(int(pid)))
BEST_LR = 1e-3


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, record: object) -> None:
    connection.execute("PRAGMA synchronous=OFF")


def accuracy(lr: float) -> float:
    """A validation accuracy in percent that is best at BEST_LR."""
    return 100 * math.exp(-((math.log10(lr / BEST_LR)) ** 2))


class StandIn:
    """Trains in no time; notes what it was asked for."""

    def __init__(self, after: Callable[[int, Config], None] = lambda number, config: None) -> None:
        self.configs: dict[int, Config] = {}
        self.names: dict[int, str] = {}
        self.epochs: dict[int, int] = {}
        self._after = after

    def __call__(
        self, config: Config, number: int, name: str, on_epoch: Callable[[Entry], bool]
    ) -> Outcome:
        self.configs[number], self.names[number] = config, name
        for epoch in range(1, config.num_epochs + 1):
            self.epochs[number] = epoch
            acc1 = accuracy(config.lr) * epoch / config.num_epochs
            metrics = {"val_acc1": acc1, "val_loss": 1 / (1 + acc1)}
            if on_epoch(Entry(epoch, 0, metrics)):
                return Outcome(f"run{number}", "pruned")
        self._after(number, config)
        return Outcome(f"run{number}")


def config(**changes: Any) -> Config:
    """A search over lr from a bad start."""
    small: dict[str, Any] = {"search": "lr", "lr": 0.9, "num_epochs": 5, "warmup_epochs": 0.0}
    return Config(**(small | {"trials": 12} | changes))


def tune(
    settings: Config, train: Any, storage: str, owner: Owner = OWNER
) -> tuple[optuna.Study, list[FrozenTrial]]:
    """Run a study to its end; the study, and the trials of this process."""
    study = open_study(open_storage(storage), "study", settings)
    mine: list[FrozenTrial] = []
    run_trials(study, settings, train, owner, mine.append, poll_seconds=0.05)
    return study, mine


def main(storage: str, trials: str, log: str, hangs_at: str = "-1") -> None:
    def note(number: int, config: Config) -> None:
        with Path(log).open("a") as file:
            file.write(f"{os.getpid()} {number} {config.lr}\n")
        # Long enough for the other process to get its share.
        time.sleep(600 if number == int(hangs_at) else 0.02)

    # One epoch, so that no trial is pruned before it is noted.
    tune(config(trials=int(trials), num_epochs=1), StandIn(note), storage)


if __name__ == "__main__":
    main(*sys.argv[1:])
