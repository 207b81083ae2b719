"""Uploads a metrics log to MLflow in batches, even if the server is unreachable for a while."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image

from k400tiny_lib.files import atomic_write
from k400tiny_lib.metrics_log import attachments_dir, read_entries

# MLflow tries a call 8 times over four minutes, each for up to two minutes.
_FAIL_FAST = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def fail_fast() -> Iterator[None]:
    """Within the block a call to a server fails at once, or after ten seconds of silence.

    For calls that are tried again later anyway, or that must not delay an error message.
    """
    before = {name: os.environ[name] for name in _FAIL_FAST if name in os.environ}
    os.environ.update(_FAIL_FAST)
    try:
        yield
    finally:
        for name in _FAIL_FAST:
            del os.environ[name]
        os.environ.update(before)


def is_unreachable(error: BaseException) -> bool:
    """Whether an error says that the tracking server did not answer."""
    # MLflow has no type for it: any exception of `requests` is raised again with this message.
    return isinstance(error, MlflowException) and str(error).startswith("API request to ")


class MetricsUploader:
    """Sends the new entries of a metrics log; what cannot be sent stays for the next attempt.

    The offsets reached are stored with the log's attachments, so that another process can continue.
    A batch that arrived without an answer is sent again: the store keeps one of two equal metrics.
    """

    def __init__(self, run_id: str, metrics_log: Path) -> None:
        self._client = MlflowClient()
        self._run_id = run_id
        self._metrics_log = metrics_log
        self._offsets_file = attachments_dir(metrics_log) / "sent.json"
        self._offsets = {"metrics": 0, "images": 0}  # in bytes
        if self._offsets_file.exists():
            self._offsets = json.loads(self._offsets_file.read_text())

    def send(self) -> None:
        """Send what is new.

        Raises:
            Exception: whatever the store raises.
        """
        entries = list(read_entries(self._metrics_log, self._offsets["metrics"]))
        if entries:
            metrics = [
                Metric(name, value, entry.timestamp, entry.step)
                for entry, _ in entries
                for name, value in entry.metrics.items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)
            self._store(metrics=entries[-1][1])
        for entry, end in read_entries(self._metrics_log, self._offsets["images"]):
            for name, path in entry.images.items():
                if not path.exists():  # deleted to save space, say
                    continue
                with Image.open(path) as image:
                    self._client.log_image(
                        self._run_id, image, key=name, step=entry.step, timestamp=entry.timestamp
                    )
            self._store(images=end)

    def _store(self, **offsets: int) -> None:
        self._offsets |= offsets
        with atomic_write(self._offsets_file) as part:
            part.write_text(json.dumps(self._offsets))
