"""Tracking stores, made in a moment."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow
import pytest
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from sqlalchemy import event
from sqlalchemy.engine import Engine

_SET_BY_STEPS = (
    *("MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"),
    "K400TINY_STARTER",
)


@event.listens_for(Engine, "connect")
def _without_waiting_for_the_disk(connection: Any, _: object) -> None:
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@cache
def _without_experiments() -> bytes:
    """A database with MLflow's tables; its migrations take a second, and are run once a process."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "mlflow.db")
        engine = create_sqlalchemy_engine(f"sqlite:///{file}")
        _initialize_tables(engine)
        engine.dispose()
        return file.read_bytes()


def make_store(folder: Path) -> str:
    """Write an empty store to a directory; returns its URI."""
    file = folder / "mlflow.db"
    file.write_bytes(_without_experiments())
    return f"sqlite:///{file}"


def copy_store(source: Path, target: Path) -> None:
    """Make the store of a directory that of another one, also while it is open."""
    with (
        closing(sqlite3.connect(source / "mlflow.db")) as read,
        closing(sqlite3.connect(target / "mlflow.db")) as written,
    ):
        read.backup(written)


@contextmanager
def tracking(uri: str) -> Iterator[None]:
    """MLflow's store for a block, in this process and those that it starts.

    What the block says to MLflow ends with it: `set_tracking_uri`, `set_experiment`, a run that is
    left open, variables of the environment.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in _SET_BY_STEPS:
            patch.setenv(name, "")  # to be restored, even if it is set by the block only
            patch.delenv(name)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        patch.setattr("mlflow.tracking._tracking_service.utils._tracking_uri", None)
        patch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
        mlflow.set_tracking_uri(uri)
        yield
        while mlflow.active_run():
            mlflow.end_run()
