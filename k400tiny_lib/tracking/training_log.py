"""The way of a training run's metrics, pictures and checkpoint to MLflow, server or no server.

Everything is a file first, beside the checkpoints: the journal of the workers, and a folder of the
same name with what the step adds. Sending them is tried all along and never stops training; what is
left in the end, `python -m steps.log_training <that folder>` sends.
"""

import shlex
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

import mlflow
from matplotlib.figure import Figure
from mlflow import MlflowClient

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.metrics_log import companion_folder, read_entries
from k400tiny_lib.tracking.outage import impatient
from k400tiny_lib.tracking.runs import ERROR_TAG
from k400tiny_lib.tracking.system_metrics import SystemSampler
from k400tiny_lib.tracking.uploader import JournalSender

_RETRY_SECONDS = 5.0
_NOTE_TAG = "mlflow.note.content"  # shown as the run's description


class TrainingLog:
    """Sends what a training run leaves; used by one process at a time."""

    def __init__(self, run_id: str, journal: Path) -> None:
        self._client = MlflowClient()
        self._run_id = run_id
        self._journal = journal
        self._images = companion_folder(journal) / "images"
        self._images.mkdir(exist_ok=True)
        self._unsent = sorted(self._images.iterdir())
        system = companion_folder(journal) / "system.jsonl"
        self._system = SystemSampler(run_id, system)
        self._senders = [JournalSender(run_id, path) for path in (journal, system)]
        self._away_since: float | None = None
        self._next_try = 0.0

    def add_picture(self, figure: Figure, name: str) -> None:
        """Keep a picture for the artifacts `images/`; `follow` or `close` sends it."""
        path = self._images / name
        figure.savefig(path)
        self._unsent.append(path)

    def follow(self) -> None:
        """Take a sample of the machine and send what is new; call it about every second."""
        self._system.sample()
        if time.monotonic() >= self._next_try:
            with impatient():
                self._note_outcome(self._send())

    def _send(self) -> Exception | None:
        for sender in self._senders:
            error = sender.send()
            if error is not None:
                return error
        try:
            while self._unsent:
                self._client.log_artifact(self._run_id, str(self._unsent[0]), "images")
                del self._unsent[0]
        except Exception as error:  # any store may raise anything; training goes on
            return error
        return None

    def _note_outcome(self, error: Exception | None) -> None:
        """Say once that the server went away, and once that it is back."""
        now = time.monotonic()
        if error is not None:
            self._next_try = now + _RETRY_SECONDS
            if self._away_since is None:
                self._away_since = now
                _warn(
                    f"{mlflow.get_tracking_uri()} takes nothing ({one_line(error)}). "
                    f"Training goes on; {self._journal} is sent when the server is back."
                )
        elif self._away_since is not None:
            _warn(f"the server is back after {now - self._away_since:.0f} s; nothing is missing.")
            self._away_since = None

    def abandon(self) -> None:
        """Send what the server takes at once, after training failed; never raises."""
        with impatient():
            error = self._send()
        if error is not None:
            _warn(f"{one_line(error)}. {self._kept()}")

    def close(
        self,
        metrics: Mapping[str, float] = types.MappingProxyType({}),
        note: str = "",
        checkpoint: Path | None = None,
    ) -> None:
        """Send all that is left, with the patience that MLFLOW_HTTP_REQUEST_MAX_RETRIES says.

        Args:
            metrics: of the whole run.
            note: the run's description, in markdown.
            checkpoint: the best one.

        Raises:
            UserError: with the command that sends the rest, if the server does not take it.
        """
        if self._away_since is not None:
            _warn("training is over; waiting for the server up to some minutes more.")
        try:
            error = self._send()
            if error is not None:
                raise error
            for name, value in metrics.items():
                self._client.log_metric(self._run_id, name, value)
            if checkpoint is not None:
                self._client.log_artifact(self._run_id, str(checkpoint), "checkpoints")
            if note:
                self._client.set_tag(self._run_id, _NOTE_TAG, note)
        except Exception as failure:  # any store may raise anything
            raise UserError(
                f"MLFLOW_TRACKING_URI: {mlflow.get_tracking_uri()} does not take the results "
                f"({one_line(failure)}). {self._kept()}"
            ) from None
        self._note_outcome(None)

    def end_run(self, failure: str = "") -> str:
        """End a run that its own step could not end any more, at the time of its last metrics.

        Args:
            failure: why it failed; "" if it did not.

        Returns:
            What was done, in one line.
        """
        status = "FAILED" if failure else "FINISHED"
        end_time = max((entry.timestamp for entry, _ in read_entries(self._journal)), default=None)
        tags = self._client.get_run(self._run_id).data.tags
        if failure:
            self._client.set_tag(self._run_id, ERROR_TAG, failure)
        elif ERROR_TAG in tags:  # that its results could not be sent
            self._client.delete_tag(self._run_id, ERROR_TAG)
        self._client.set_terminated(self._run_id, status, end_time)
        return f"run {self._run_id}: everything is logged, {status}"

    def _kept(self) -> str:
        return (
            f"Checkpoints and metrics are safe in {self._journal.parent}. Needed: the server back, "
            f"then `{self.command()}`."
        )

    def command(self) -> str:
        """The command line that sends what is left."""
        server = shlex.quote(mlflow.get_tracking_uri())
        folder = shlex.quote(str(companion_folder(self._journal)))
        return f"MLFLOW_TRACKING_URI={server} python -m steps.log_training {folder}"


def _warn(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr, flush=True)
