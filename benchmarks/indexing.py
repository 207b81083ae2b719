"""Annotations of a Kinetics-sized data set: index, splits and JSON of 240,000 clips.

    python -m benchmarks.indexing [--clips 2400 24000 240000] [--directory /tmp]

The clips are folders of two hard links to tiny frames: listing, grouping and splitting cost what
they cost, reading pixels is left out. The first preparation checks every clip once; the second one,
which the table is about, finds nothing changed. Each is a process of its own, so that the peak of
its memory is its own too.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from benchmarks.common import Headline, write_result
from k400tiny_lib.system import available_cores, cpu_name

_CLASSES = 400
_CLIPS_PER_SOURCE = 2


def make_tree(root: Path, num_clips: int) -> None:
    """Clip folders with two frames each, and their ground truth.

    Hard links to few files, of 16 pixels a side; one clip in 5,000 shows the same as a clip of
    another source.
    """
    from k400tiny_lib.data.sources.labels import KINETICS_400

    sources = root / "files"
    sources.mkdir(parents=True)
    rng = np.random.default_rng(0)
    # A clip is a pair of files: so few make enough pairs, and no file nears ext4's 65,000 links.
    count = int(num_clips**0.5) + 1
    for number in range(count):
        frame = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(sources / f"{number}.jpg"), frame)
    rows = ["folder_name,youtube_id,label"]
    for clip in range(num_clips):
        source = clip // _CLIPS_PER_SOURCE
        name = f"id{source:09d}_{clip:06d}_{clip + 10:06d}"
        folder = root / "clips" / name
        folder.mkdir(parents=True)
        shown = clip - 2 if clip % 5000 == 4999 else clip
        for frame_number, file in enumerate(divmod(shown, count)):
            os.link(sources / f"{file}.jpg", folder / f"frame{frame_number:02d}.jpg")
        rows.append(f"{name},id{source:09d},{KINETICS_400[source % _CLASSES]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")


def measure(root: Path) -> dict[str, float]:
    """Prepare in this process: seconds without imports, and the peak of memory in MB."""
    from k400tiny_lib.config import Config
    from k400tiny_lib.data.preparation.prepare import prepare
    from k400tiny_lib.data.sources.base import open_source

    config = Config(
        data_path=str(root / "clips"), gt_csv=str(root / "labels.csv"), output_dir=str(root / "out")
    )
    start = time.perf_counter()
    prepared = prepare(config, open_source(config))
    (root / "annotations.json").write_text(prepared.annotations.to_json())
    (root / "data_report.json").write_text(json.dumps(prepared.report))
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mb": peak, "clips": prepared.report["num_clips"]}


def _in_own_process(root: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.indexing", "--measure", str(root)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output)
    return found


def run(sizes: list[int], directory: Path) -> tuple[str, list[Headline]]:
    """Measure each size; returns the table as markdown and the headline."""
    lines = [
        f"# Indexing and splitting on {cpu_name()}",
        "",
        f"{available_cores()} cores, Python {platform.python_version()}. Made tree of hard links, "
        "two frames of 16 x 16 pixels a clip, two clips a source, 400 classes. First: with the "
        "one-off check of every clip. Then: with the index, the CSV, splits, report and JSON.",
        "",
        "| clips | first, s | then, s | then, µs a clip | peak memory, MB |",
        "|---|---|---|---|---|",
    ]
    for size in sizes:
        with tempfile.TemporaryDirectory(dir=directory) as folder:
            root = Path(folder)
            make_tree(root, size)
            first, then = _in_own_process(root), _in_own_process(root)
        micros = then["seconds"] / size * 1e6
        lines.append(
            f"| {size:,} | {first['seconds']:.1f} | {then['seconds']:.1f} | {micros:.0f} "
            f"| {max(first['peak_mb'], then['peak_mb']):.0f} |"
        )
        print(lines[-1], flush=True)
    headline = Headline(
        f"preparing {size:,} clips again",
        f"{then['seconds']:.1f} s",
        f"the first time, with each clip checked: {first['seconds']:.1f} s",
        f"{first['seconds'] / then['seconds']:.1f}",
    )
    return "\n".join(lines) + "\n", [headline]


def main() -> None:
    """Read the command line, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[2_400, 24_000, 240_000])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    write_result("indexing", cpu_name(), *run(arguments.clips, arguments.directory))


if __name__ == "__main__":
    main()
