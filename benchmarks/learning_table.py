"""What the learning benchmark keeps of its runs, and the table that is made of them."""

import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.common import markdown
from k400tiny_lib.evaluation.comparison import compare_predictions
from k400tiny_lib.evaluation.metrics import accuracy_interval
from k400tiny_lib.system import available_cores, cpu_name

SIDES = ("reference", "ours")
FOLDS = 3


@dataclass(frozen=True)
class Run:
    """One training and its predictions.

    Attributes:
        data: a key of OURS.
        side: one of SIDES.
        number: the seed on the sample, the fold of real clips.
        recipe: the parameters that differ from their defaults.
        clips_seen: training clips that went through the model, repetitions counted.
        train_acc1: of the last epoch, in percent, over the clips as the updates saw them.
        minutes: of training alone.
        load: the machine's load average at the end.
        predictions: the table of `make_table`, as CSV.
    """

    data: str
    side: str
    number: int
    recipe: dict[str, Any]
    clips_seen: int
    train_acc1: float
    minutes: float
    load: float
    predictions: str

    @property
    def key(self) -> tuple[str, str, int]:
        """What the run is called by."""
        return self.data, self.side, self.number

    @property
    def table(self) -> pd.DataFrame:
        """The predictions."""
        return pd.read_csv(StringIO(self.predictions))


def load_runs(file: Path) -> dict[tuple[str, str, int], Run]:
    """The finished runs of a folder by their keys; a line that was cut off counts for nothing."""
    runs: dict[tuple[str, str, int], Run] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            run = Run(**json.loads(line))
        except ValueError:
            continue
        runs[run.key] = run
    return runs


def pooled(runs: Sequence[Run]) -> pd.DataFrame:
    """The predictions of several runs below one another, in the order of their numbers."""
    ordered = sorted(runs, key=lambda run: run.number)
    return pd.concat([run.table for run in ordered], ignore_index=True)


def percent(table: pd.DataFrame) -> str:
    """Top-1 with its 95 % interval, resampling sources."""
    correct = table["predicted"] == table["target"]
    low, high = accuracy_interval(correct, table["group"])
    return f"{100 * correct.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def section(data: str, runs: Sequence[Run]) -> list[str]:
    """The paragraphs about one data set; nothing unless both sides have the same runs."""
    sides = {side: [run for run in runs if (run.data, run.side) == (data, side)] for side in SIDES}
    numbers = [{run.number for run in sides[side]} for side in SIDES]
    if not numbers[0] or numbers[0] != numbers[1]:
        return []
    tables = {side: pooled(sides[side]) for side in SIDES}
    ours, reference = tables["ours"], tables["reference"]
    difference = compare_predictions(ours, ours["predicted"], reference["predicted"])
    rows = []
    for side in SIDES:
        done = sorted(sides[side], key=lambda run: run.number)
        single = [100 * (run.table["predicted"] == run.table["target"]).mean() for run in done]
        minutes = sum(run.minutes for run in done)
        seen = sum(run.clips_seen for run in done)
        rows.append(
            [
                side,
                percent(tables[side]),
                " / ".join(f"{value:.1f}" for value in single),
                " / ".join(f"{run.train_acc1:.0f}" for run in done),
                f"{seen}",
                f"{minutes:.0f}",
                f"{seen / minutes / 60:.1f}",
                f"{np.median([run.load for run in done]):.1f}",
            ]
        )
    clips = reference.drop_duplicates("video")
    chance = 100 * clips["target"].value_counts(normalize=True).max()
    unit = "seed" if data == "sample" else "fold"
    return [
        f"{clips['video'].nunique()} clips predicted, of {clips['group'].nunique()} sources and "
        f"{clips['target'].nunique()} classes, by {len(numbers[0])} {unit}s; the most frequent "
        f"class alone is {chance:.1f} %.",
        markdown(
            (
                "",
                "top-1 % (95 % interval)",
                f"of each {unit}",
                "training top-1 in the last epoch",
                "clips seen",
                "minutes",
                "clips/s",
                "load average",
            ),
            rows,
        ),
        f"Ours minus the reference, clip by clip: {difference.difference:+.1f} points (95 % "
        f"interval {difference.low:+.1f} to {difference.high:+.1f}).",
        "\n".join(f"- {side}: `{json.dumps(sides[side][0].recipe)}`" for side in SIDES),
    ]


TITLES = {
    "sample": "## The rendered sample",
    "real": f"## Real clips, {FOLDS}-fold cross-validation by source",
}


def report(runs: Sequence[Run]) -> str:
    """The text of the results file."""
    parts = [
        "# Does it learn?",
        f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, PyTorch "
        f"{torch.__version__}. R(2+1)D-18 from scratch on both sides, with the same batch size, "
        "geometry and epochs; the last weights are scored with one center view. Intervals resample "
        "sources. The load average is the median over the runs' ends: beyond the number of cores "
        "others were computing too, and minutes and clips/s say little about the machine.",
        "The reference: SGD at a constant 0.1, momentum 0.9, weight decay 1e-4 on all parameters, "
        "no warm-up, no augmentation, always the same frames of a clip, no label smoothing, "
        "float32. It does not shuffle: the list is brought into a random order once, as its "
        "preparation does, and every epoch goes through it in that order. Its last, partial batch "
        "of an epoch counts too, so it sees up to a batch more an epoch than ours.",
    ]
    for data, title in TITLES.items():
        paragraphs = section(data, runs)
        parts += [title, *paragraphs] if paragraphs else []
    return "\n\n".join(parts)
