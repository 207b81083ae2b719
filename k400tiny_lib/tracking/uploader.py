"""Sends a training journal to MLflow, in batches, and survives a server that is away."""

import json
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from PIL import Image

from k400tiny_lib.files import atomic_write
from k400tiny_lib.metrics_log import Entry, companion_folder, read_entries

_MAX_METRICS = 1000  # MLflow's limit for one batch


class JournalSender:
    """Follows a journal and sends what is new; what cannot be sent stays for the next try.

    How far it came is noted beside the journal, so that another process can go on. A batch that
    arrived without our knowing is sent again: the store keeps one of two equal metrics.
    """

    def __init__(self, run_id: str, journal: Path) -> None:
        self._client = MlflowClient()
        self._run_id = run_id
        self._journal = journal
        self._note = companion_folder(journal) / "sent.json"
        self._sent = {"metrics": 0, "images": 0}  # byte offsets in the journal
        if self._note.exists():
            self._sent = json.loads(self._note.read_text())

    def send(self) -> Exception | None:
        """Send what is new; returns the reason if the server refuses or is away."""
        try:
            self._send_metrics()
            self._send_images()
        except Exception as error:  # any store may raise anything; training goes on
            return error
        return None

    def _send_metrics(self) -> None:
        batch: list[Metric] = []
        offset = self._sent["metrics"]
        for entry, end in read_entries(self._journal, offset):
            metrics = _metrics(entry)
            if batch and len(batch) + len(metrics) > _MAX_METRICS:
                self._client.log_batch(self._run_id, metrics=batch)
                self._progress(metrics=offset)
                batch = []
            batch += metrics
            offset = end
        if batch:
            self._client.log_batch(self._run_id, metrics=batch)
            self._progress(metrics=offset)

    def _send_images(self) -> None:
        offset = self._sent["images"]
        for entry, end in read_entries(self._journal, offset):
            for name, path in entry.images.items():
                if not path.exists():  # deleted to save space, say
                    continue
                with Image.open(path) as image:
                    self._client.log_image(
                        self._run_id, image, key=name, step=entry.step, timestamp=entry.timestamp
                    )
                self._progress(images=end)
            offset = end
        if offset != self._sent["images"]:
            self._progress(images=offset)

    def _progress(self, **offsets: int) -> None:
        self._sent |= offsets
        with atomic_write(self._note) as part:
            part.write_text(json.dumps(self._sent))


def _metrics(entry: Entry) -> list[Metric]:
    return [
        Metric(name, value, entry.timestamp, entry.step) for name, value in entry.metrics.items()
    ]
