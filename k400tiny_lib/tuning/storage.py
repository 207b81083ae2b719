"""Where a study keeps its trials, so that it can be continued and shared."""

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import expand

DEFAULT = Path(".k400tiny", "tuning.db")
_BEAT_SECONDS = 10
GRACE_SECONDS = 60  # without a heartbeat, after which the process of a trial counts as dead
_SQLITE_WAIT_SECONDS = 60  # for another process to end its transaction
_ATTEMPTS = 5


def open_storage(storage: str) -> RDBStorage:
    """Open a storage, or make it.

    Args:
        storage: from `storage_url`.

    Raises:
        UserError: if the storage cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=ExperimentalWarning)
    is_sqlite = storage.startswith("sqlite")
    options: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_WAIT_SECONDS}}
    with storage_errors(storage, ImportError, RuntimeError, ValueError):
        for attempt in range(_ATTEMPTS):
            try:
                return RDBStorage(
                    storage,
                    engine_kwargs=options if is_sqlite else None,
                    heartbeat_interval=_BEAT_SECONDS,
                    grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=give_up,
                )
            except Exception:
                # Two processes that make the tables of a new file at once disturb each other.
                if not is_sqlite or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(0.2 * 2**attempt)
    raise AssertionError("the last attempt returns or raises")


def open_study(storage: RDBStorage, name: str, config: Config) -> optuna.Study:
    """Open a study, or begin it.

    Args:
        storage: from `open_storage`.
        name: of the study.
        config: the parameters of tune.
    """
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction="maximize",
        load_if_exists=True,
        # While the learning rate rises, a training says little about its end.
        pruner=optuna.pruners.MedianPruner(n_warmup_steps=2 + int(config.warmup_epochs)),
    )


def storage_url(storage: str) -> str:
    """The SQLAlchemy URL of the parameter `storage`; makes the directory of a file.

    Raises:
        UserError: if the directory cannot be made, or nothing would be kept.
    """
    path = expand(str(DEFAULT) if storage == AUTO else storage)
    if "://" not in path:
        try:
            Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"storage: {path} cannot be made ({error.strerror}).") from None
        return f"sqlite:///{Path(path).absolute()}"
    if path.rstrip("/") == "sqlite:" or ":memory:" in path:
        raise UserError(f"storage: {path} ends with this process. Needed: a file or a database.")
    return path


@contextmanager
def storage_errors(storage: str, *more: type[Exception]) -> Iterator[None]:
    """Turn what a database raises within the block, and more, into an error for people."""
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, StorageInternalError, *more)
    try:
        yield
    except kinds as error:
        raise UserError(
            f"storage: {storage} fails: {one_line(error.__cause__ or error)}. Needed: a file that "
            "can be written to, or the SQLAlchemy URL of a database whose driver is installed."
        ) from error


def give_up(study: optuna.Study, trial: FrozenTrial) -> None:
    """Say that the process of a trial is gone, which has been ended as failed."""
    print(f"trial {trial.number}: its process is gone; it does not count", flush=True)
    retry(study, trial)


def retry(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put the values of a trial in line again, but only once.

    They may be what has ended the process: out of memory, say.
    """
    if trial.params and "retry_of" not in trial.user_attrs:
        study.enqueue_trial(trial.params, user_attrs={"retry_of": trial.number})
