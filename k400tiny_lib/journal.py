"""What happened in training, as lines of JSON that another process can follow.

Rank 0 appends; the step that launched it reads along and sends the lines to MLflow. Training
therefore knows no tracking server and never waits for one, and what was not sent is still there.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Metrics of one moment.

    Attributes:
        step: the epoch, from 1.
        timestamp: milliseconds since 1970.
        metrics: values by name.
    """

    step: int
    timestamp: int
    metrics: dict[str, float]


class Journal:
    """Appends entries to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Append the metrics of an epoch."""
        record: dict[str, Any] = {
            "step": step, "timestamp": int(time.time() * 1000), "metrics": metrics,
        }  # fmt: skip
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def read_entries(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Read complete lines from a byte offset; yields each entry and the offset behind it."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # still being written
            offset += len(line)
            record = json.loads(line)
            yield Entry(record["step"], record["timestamp"], record["metrics"]), offset
