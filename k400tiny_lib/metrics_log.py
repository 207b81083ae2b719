"""What happened in training, as lines of JSON that another process can follow.

Rank 0 appends; the step that launched it reads along and sends the lines to MLflow. Training
therefore knows no tracking server and never waits for one, and what was not sent is still there.
"""

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Metrics and pictures of one moment.

    Attributes:
        step: the epoch, from 1.
        timestamp: milliseconds since 1970.
        metrics: values by name.
        images: picture files by name; the pictures of one name are a series over the steps.
    """

    step: int
    timestamp: int
    metrics: dict[str, float]
    images: dict[str, Path] = field(default_factory=dict)


class Journal:
    """Appends entries to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def log_metrics(
        self, metrics: Mapping[str, float], step: int, images: Mapping[str, Path] | None = None
    ) -> None:
        """Append the metrics of an epoch, and its pictures: files beside the journal or below."""
        record: dict[str, Any] = {
            "step": step,
            "timestamp": int(time.time() * 1000),
            "metrics": dict(metrics),
        }
        if images:
            folder = self.path.parent
            record["images"] = {name: str(p.relative_to(folder)) for name, p in images.items()}
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def companion_folder(journal: Path) -> Path:
    """The folder of what belongs to a journal and is no line of it, created where needed."""
    folder = journal.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


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
            images = {name: path.parent / file for name, file in record.get("images", {}).items()}
            yield Entry(record["step"], record["timestamp"], record["metrics"], images), offset
