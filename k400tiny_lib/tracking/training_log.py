"""Logs a training run to MLflow: metrics, images and checkpoint, even if the server is unreachable.

Everything is first written to files in checkpoint_dir: the metrics log of the workers, and a
directory of the same name with its attachments. They are sent while training runs, and failures
never stop it; `python -m steps.log_training <that directory>` sends the rest afterwards.
"""

import shlex
import sys
import time
import types
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure
from mlflow import MlflowClient

from k400tiny_lib.errors import UserError, hide_passwords, one_line
from k400tiny_lib.files import disk_problem
from k400tiny_lib.metrics_log import attachments_dir, read_entries
from k400tiny_lib.tracking.naming import NOTE_TAG
from k400tiny_lib.tracking.runs import ERROR_TAG
from k400tiny_lib.tracking.server import server_in_shell, shown_server
from k400tiny_lib.tracking.system_metrics import SystemSampler
from k400tiny_lib.tracking.uploader import MetricsUploader, fail_fast


class TrainingLog:
    """Sends the files of one training run; for one process at a time."""

    def __init__(self, run_id: str, metrics_log: Path, retry_seconds: float = 5.0) -> None:
        self._client = MlflowClient()
        metrics_log = metrics_log.absolute()  # messages show it, and the user may be elsewhere
        self._run_id, self._metrics_log = run_id, metrics_log
        self._attachments = attachments_dir(metrics_log)
        self._images = self._attachments / "images"
        self._images.mkdir(exist_ok=True)
        self._unsent = sorted(self._images.iterdir())
        system = self._attachments / "system.jsonl"
        self._system = SystemSampler(run_id, system)
        self._uploaders = [MetricsUploader(run_id, path) for path in (metrics_log, system)]
        self._unreachable_since: float | None = None
        self._retry_seconds = retry_seconds
        self._next_try = 0.0

    def add_figure(self, figure: Figure, name: str) -> None:
        """Store a figure for the artifacts `images/`; `follow` or `close` sends it."""
        path = self._images / name
        figure.savefig(path)
        self._unsent.append(path)

    def follow(self) -> None:
        """Sample system metrics and send what is new; call it about every second."""
        self._system.sample()
        if time.monotonic() >= self._next_try:
            self._report(self._try_to_send())

    def _try_to_send(self) -> Exception | None:
        try:
            with fail_fast():
                self._send()
        except Exception as error:  # any store may raise anything; training continues
            return error
        return None

    def _send(self) -> None:
        for uploader in self._uploaders:
            uploader.send()
        while self._unsent:
            self._client.log_artifact(self._run_id, str(self._unsent[0]), "images")
            del self._unsent[0]

    def _report(self, error: Exception | None) -> None:
        """Print once that the server became unreachable, and once that it is back."""
        now = time.monotonic()
        if error is not None:
            self._next_try = now + self._retry_seconds
            if problem := disk_problem(error, self._attachments):
                if self._unreachable_since is None:
                    _warn(f"{problem}. Training continues as long as it can.")
            elif self._unreachable_since is None:
                _warn(
                    f"{shown_server()} takes nothing ({one_line(error)}). "
                    f"Training continues; {self._metrics_log} is sent when the server is back."
                )
            self._unreachable_since = self._unreachable_since or now
        elif self._unreachable_since is not None:
            seconds = now - self._unreachable_since
            _warn(f"the server is back after {seconds:.0f} s; nothing is missing.")
            self._unreachable_since = None

    def abandon(self) -> None:
        """Send what the server takes at once, after training failed; never raises."""
        if error := self._try_to_send():
            problem = disk_problem(error, self._attachments)
            _warn(f"{problem}." if problem else f"{one_line(error)}. {self._kept()}")

    def close(
        self,
        metrics: Mapping[str, float] = types.MappingProxyType({}),
        note: str = "",
        checkpoint: Path | None = None,
    ) -> None:
        """Send the rest, with MLFLOW_HTTP_REQUEST_MAX_RETRIES retries.

        Args:
            metrics: of the whole run.
            note: the run's description, in Markdown.
            checkpoint: the best one.

        Raises:
            UserError: with the command that sends the rest, if the server does not take it; if
                there is no checkpoint, or the disk is full.
        """
        if checkpoint is not None and not checkpoint.exists():
            raise UserError(f"checkpoint_dir: {checkpoint} does not exist any more.")
        if self._unreachable_since is not None:
            _warn("training is over; waiting for the server up to some minutes more.")
        try:
            self._send()
            for name, value in metrics.items():
                self._client.log_metric(self._run_id, name, value)
            if checkpoint is not None:
                self._client.log_artifact(self._run_id, str(checkpoint), "checkpoints")
            if note:
                self._client.set_tag(self._run_id, NOTE_TAG, hide_passwords(note))
        except Exception as error:  # any store may raise anything
            if problem := disk_problem(error, self._attachments):
                raise UserError(f"checkpoint_dir: {problem}.") from None
            raise UserError(
                f"MLFLOW_TRACKING_URI: {shown_server()} does not take the results "
                f"({one_line(error)}). {self._kept()}"
            ) from None
        self._report(None)

    def end_run(self, failure: str = "") -> str:
        """End a run whose step could not reach the server, at the time of its last metrics.

        Args:
            failure: why it failed; "" if it did not.

        Returns:
            A line for the console.
        """
        status = "FAILED" if failure else "FINISHED"
        times = (entry.timestamp for entry, _ in read_entries(self._metrics_log))
        end_time = max(times, default=None)
        if failure:
            self._client.set_tag(self._run_id, ERROR_TAG, failure)
        elif ERROR_TAG in self._client.get_run(self._run_id).data.tags:
            # Set when the results could not be sent.
            self._client.delete_tag(self._run_id, ERROR_TAG)
        self._client.set_terminated(self._run_id, status, end_time)
        return f"run {self._run_id}: everything is logged, {status}"

    def _kept(self) -> str:
        server = server_in_shell()
        folder = shlex.quote(str(self._attachments))
        return (
            f"Checkpoints and metrics are safe in {self._metrics_log.parent}. Needed: the server "
            f"back, then `MLFLOW_TRACKING_URI={server} python -m steps.log_training {folder}`."
        )


def _warn(message: str) -> None:
    print(f"tracking: {message}", file=sys.stderr, flush=True)
