"""The training of a trial: a nested run of train that can be stopped early."""

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from k400tiny_lib.config import AUTO, NONE, Config
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.metrics_log import Entry, read_entries
from k400tiny_lib.tracking.naming import NAME_TAG
from k400tiny_lib.tracking.runs import ERROR_TAG
from k400tiny_lib.tuning.study import Outcome
from k400tiny_lib.workflow.chain import StepFailed, run_nested

PRUNED_TAG = "k400tiny.pruned"
_CHECKPOINTS = "checkpoints"  # also the default of checkpoint_dir, and the artifacts' directory
_PREFIX = "tune-"  # of the directory of a tuning, before its run
# The message of a training whose loss or weights are not finite.
_DIVERGED = re.compile(r"lr: .* Needed: a smaller lr than ", re.DOTALL)
_POLL_SECONDS = 0.5


class NestedTraining:
    """Trains trials as children of the active run; their checkpoints are deleted again.

    Args:
        parent: the active run.
        checkpoint_dir: as given; each trial has a directory in it.
        has_ended: whether the run of a tuning has ended; what a killed one has left is deleted.
    """

    def __init__(self, parent: Run, checkpoint_dir: str, has_ended: Callable[[str], bool]) -> None:
        base = Path(_CHECKPOINTS if checkpoint_dir == AUTO else checkpoint_dir)
        self._parent = parent
        self._folder = base / f"{_PREFIX}{parent.info.run_id}"
        for left in base.glob(f"{_PREFIX}*"):
            if has_ended(left.name.removeprefix(_PREFIX)):
                shutil.rmtree(left, ignore_errors=True)

    def __call__(
        self, config: Config, number: int, name: str, on_epoch: Callable[[Entry], bool]
    ) -> Outcome:
        """Train for one trial; see `Train`."""
        folder = (self._folder / f"trial-{number}").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        config = config.replace(checkpoint_dir=str(folder), description=NONE)
        log = folder / "output.log"
        failure = None
        try:
            with _Follower(folder, on_epoch) as follower, _output_to(log):
                try:
                    run = run_nested("train", config, self._parent, name)
                except StepFailed as error:
                    run, failure = error.run, error.reason or "it ended without a message"
        except KeyboardInterrupt:
            self._delete(folder)
            raise
        outcome = _outcome(run, failure, follower.stopped_after)
        if outcome is None:
            raise UserError(
                f"trial {number}: train failed (run {run.info.run_id}): "
                f"{one_line(Exception(failure), 500)}. Its output is in {log}."
            )
        best = f"{follower.best_acc1:.1f} %" if outcome.end == "finished" else outcome.end
        MlflowClient().set_tag(run.info.run_id, NAME_TAG, f"{name} · {best}")
        self._delete(folder)
        return outcome

    def _delete(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other trials are in it
            self._folder.rmdir()


def delete_checkpoint(run_id: str) -> None:
    """Delete the checkpoint among the artifacts of a trial that is not the best."""
    try:
        get_artifact_repository(f"runs:/{run_id}").delete_artifacts(_CHECKPOINTS)
    except Exception as error:  # every artifact store raises its own
        print(f"run {run_id}: its checkpoint cannot be deleted ({one_line(error)})", flush=True)


def _outcome(run: Run, failure: str | None, stopped_after: int | None) -> Outcome | None:
    """How a training has ended; None if it failed for a reason that lies not in its values."""
    run_id = run.info.run_id
    if failure is None:  # it was over before a signal came
        return Outcome(run_id)
    if _DIVERGED.match(failure):
        return Outcome(run_id, "diverged")
    if stopped_after is None:
        return None
    client = MlflowClient()
    client.set_tag(run_id, PRUNED_TAG, f"after epoch {stopped_after}")
    client.delete_tag(run_id, ERROR_TAG)
    client.set_terminated(run_id, "KILLED")
    return Outcome(run_id, "pruned")


class _Follower:
    """Reads the metrics log of a training in a thread, and stops training where it should."""

    def __init__(self, folder: Path, on_epoch: Callable[[Entry], bool]) -> None:
        self.stopped_after: int | None = None
        self.best_acc1 = 0.0
        self._folder, self._on_epoch = folder, on_epoch
        self._offset = 0
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> "_Follower":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._over.set()
        self._thread.join()
        if kind is None:
            if self._error is not None:
                raise self._error
            self._read()  # the last epochs

    def _follow(self) -> None:
        try:
            while not self._over.wait(_POLL_SECONDS):
                if self.stopped_after is None and (stop := self._read()):
                    self.stopped_after = stop
                    _stop_training()
        except Exception as error:  # of the study's storage; raised in the main thread
            self._error = error
            _stop_training()

    def _read(self) -> int | None:
        """Read new epochs; returns the one after which training is to stop."""
        stop = None
        for log in self._folder.glob("metrics-*.jsonl"):
            for entry, end in read_entries(log, self._offset):
                self._offset = end
                self.best_acc1 = max(self.best_acc1, entry.metrics["val_acc1"])
                if self._on_epoch(entry):
                    stop = stop or entry.step
        return stop


def _stop_training() -> None:
    """Interrupt the step train, a descendant of this process, as Ctrl-C would."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "steps.train" in process.cmdline():  # a shell has it within a longer argument
                process.terminate()


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Let the processes that are started within the block write to a file.

    The lines of a training for each epoch would hide those of the trials.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with path.open("ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
