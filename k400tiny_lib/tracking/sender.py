"""Sends a training journal to MLflow, in batches, and survives a server that is away."""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric

from k400tiny_lib.errors import UserError
from k400tiny_lib.journal import read_entries

_MAX_METRICS = 1000  # MLflow's limit for one batch


class JournalSender:
    """Follows a journal and sends what is new; what cannot be sent stays for the next try.

    Attributes:
        latest: the metrics sent last.
    """

    def __init__(self, run_id: str, journal: Path) -> None:
        self._client = MlflowClient()
        self._run_id = run_id
        self._journal = journal
        self._offset = 0
        self.latest: dict[str, float] = {}

    def send(self) -> Exception | None:
        """Send the new entries; returns the reason if the server refuses or is away."""
        batch: list[Metric] = []
        offset, latest = self._offset, self.latest
        for entry, end in read_entries(self._journal, self._offset):
            metrics = [
                Metric(name, value, entry.timestamp, entry.step)
                for name, value in entry.metrics.items()
            ]
            if batch and len(batch) + len(metrics) > _MAX_METRICS:
                break
            batch += metrics
            offset, latest = end, entry.metrics
        if not batch:
            return None
        try:
            self._client.log_batch(self._run_id, metrics=batch)
        except Exception as error:  # any store may raise anything; training goes on
            return error
        self._offset, self.latest = offset, latest
        return None

    def finish(self) -> None:
        """Send what is left.

        Raises:
            UserError: if the server does not take it.
        """
        sent = -1
        while sent != self._offset:
            sent = self._offset
            error = self.send()
            if error is not None:
                raise UserError(
                    f"MLFLOW_TRACKING_URI: metrics could not be sent ({error}); they are in "
                    f"{self._journal}."
                )
