"""Metrics of a training run as lines of JSON, which another process can follow.

Rank 0 appends, and the step that launched it sends the lines to MLflow: training needs no tracking
server and never waits for one.
"""

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One line of a metrics log.

    Attributes:
        step: the epoch, from 1.
        timestamp: milliseconds since 1970.
        metrics: values by name.
        images: image files by name; the images of one name are a series over the steps.
    """

    step: int
    timestamp: int
    metrics: dict[str, float]
    images: dict[str, Path] = field(default_factory=dict)


def append_entry(
    path: Path, metrics: Mapping[str, float], step: int, images: Mapping[str, Path] | None = None
) -> None:
    """Append the metrics of a step to a log, and its images: files in the directory of the log."""
    timestamp = int(time.time() * 1000)
    record: dict[str, Any] = {"step": step, "timestamp": timestamp, "metrics": dict(metrics)}
    if images:
        record["images"] = {n: str(file.relative_to(path.parent)) for n, file in images.items()}
    start = path.stat().st_size if path.exists() else 0
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:  # a full disk; no half a line is left
        if error.errno:
            error.filename = error.filename or str(path)
        if path.exists():
            os.truncate(path, start)
        raise


def attachments_dir(metrics_log: Path) -> Path:
    """The directory of the files that belong to a metrics log; created if it is missing."""
    folder = metrics_log.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_entries(path: Path, offset: int = 0) -> Iterator[tuple[Entry, int]]:
    """Read complete lines from a byte offset; yields each entry and the offset of its end."""
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
