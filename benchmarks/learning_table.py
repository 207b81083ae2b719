"""What the learning benchmark keeps of its runs, and the table that is made of them."""

import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from benchmarks.common import Headline, markdown
from k400tiny_lib.data.sources.drawing import CLASSES
from k400tiny_lib.evaluation.comparison import compare_predictions
from k400tiny_lib.evaluation.metrics import accuracy_interval
from k400tiny_lib.system import available_cores, cpu_name

SIDES = ("reference", "scratch", "small")
FOLDS = 3
TITLES = {
    "sample": "## The rendered sample",
    "real": f"## Real clips, {FOLDS}-fold cross-validation by source",
}
_REVERSED = "its reverse"


class Key(NamedTuple):
    """What a run is called by.

    Attributes:
        data: a key of TITLES.
        side: one of SIDES.
        seed: of the weights and the order, on real clips of the folds too.
        fold: of real clips; 0 on the sample.
    """

    data: str
    side: str
    seed: int
    fold: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


@dataclass(frozen=True)
class Run:
    """One training and its predictions.

    Attributes:
        data, side, seed, fold: see `Key`.
        recipe: the parameters that differ from their defaults.
        clips_seen: training clips that went through the model or, as kept features, its head;
            repetitions counted.
        train_acc1: of the last epoch, in percent, over the clips as the updates saw them.
        seconds: of training, with the features that it computes once.
        load: the machine's load average at the end.
        predictions: the table of `make_table`, as CSV.
    """

    data: str
    side: str
    seed: int
    fold: int
    recipe: dict[str, Any]
    clips_seen: int
    train_acc1: float
    seconds: float
    load: float
    predictions: str

    @property
    def key(self) -> Key:
        """What the run is called by."""
        return Key(self.data, self.side, self.seed, self.fold)

    @property
    def table(self) -> pd.DataFrame:
        """The predictions."""
        return pd.read_csv(StringIO(self.predictions))


def load_runs(file: Path) -> dict[Key, Run]:
    """The finished runs of a folder; a line that was cut off or is of another form is left out."""
    runs: dict[Key, Run] = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            run = Run(**json.loads(line))
        except (ValueError, TypeError):
            continue
        runs[run.key] = run
    return runs


def pooled(runs: Sequence[Run]) -> pd.DataFrame:
    """The predictions of several runs below one another, each clip of a seed at the same row."""
    ordered = sorted(runs, key=lambda run: run.key)
    return pd.concat([run.table for run in ordered], ignore_index=True)


def percent(table: pd.DataFrame) -> str:
    """Top-1 with its 95 % interval, resampling sources."""
    correct = table["predicted"] == table["target"]
    low, high = accuracy_interval(correct, table["group"])
    return f"{100 * correct.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def section(data: str, runs: Sequence[Run]) -> list[str]:
    """The paragraphs about one data set: of each side the seeds whose folds are all there."""
    by_side = {side: _whole_seeds(data, side, runs) for side in SIDES}
    by_side = {side: done for side, done in by_side.items() if done}
    if not by_side:
        return []
    pairs = [
        (this, other, by_side[this].keys() & by_side[other].keys())
        for this, other in (("scratch", "reference"), ("small", "scratch"))
        if {this, other} <= by_side.keys()
    ]
    sides = {side: list(done.values()) for side, done in by_side.items()}
    tables = {side: pooled(done) for side, done in sides.items()}
    clips = next(iter(tables.values())).drop_duplicates("video")
    chance = 100 * clips["target"].value_counts(normalize=True).max()
    return [
        f"{len(clips)} clips predicted, of {clips['group'].nunique()} sources and "
        f"{clips['target'].nunique()} classes; the most frequent class alone is {chance:.1f} %.",
        markdown(
            (
                "",
                "top-1 % (95 % interval)",
                "of each seed",
                "training top-1 in the last epoch",
                "clips seen by a training",
                "seconds of a training",
                "load average",
            ),
            [_row(side, done, tables[side]) for side, done in sides.items()],
        ),
        *(
            _difference({side: [by_side[side][n] for n in shared] for side in (this, other)})
            for this, other, shared in pairs
            if shared
        ),
        *(_directions(tables) if data == "sample" and tables.keys() == set(SIDES) else ()),
        "\n".join(f"- {side}: `{json.dumps(done[0].recipe)}`" for side, done in sides.items()),
    ]


def _whole_seeds(data: str, side: str, runs: Sequence[Run]) -> dict[tuple[int, int], Run]:
    """The runs of a side by seed and fold, of the seeds of which no fold is missing."""
    done = {(run.seed, run.fold): run for run in runs if (run.data, run.side) == (data, side)}
    folds = Counter(seed for seed, _ in done)
    needed = FOLDS if data == "real" else 1
    return {key: run for key, run in sorted(done.items()) if folds[key[0]] == needed}


def _row(side: str, runs: Sequence[Run], table: pd.DataFrame) -> list[str]:
    seeds = sorted({run.seed for run in runs})
    of_seeds = [pooled([run for run in runs if run.seed == seed]) for seed in seeds]
    single = [100 * (each["predicted"] == each["target"]).mean() for each in of_seeds]
    return [
        side,
        percent(table),
        " / ".join(f"{value:.1f}" for value in single),
        f"{np.mean([run.train_acc1 for run in runs]):.0f}",
        f"{np.mean([run.clips_seen for run in runs]):.0f}",
        f"{np.median([run.seconds for run in runs]):.0f}",
        f"{np.median([run.load for run in runs]):.1f}",
    ]


def _difference(runs: Mapping[str, Sequence[Run]]) -> str:
    """One side minus another, on the seeds and folds that both have, in the same order."""
    this, other = runs
    tables = {side: pooled(done) for side, done in runs.items()}
    compared = compare_predictions(
        tables[this], tables[this]["predicted"], tables[other]["predicted"]
    )
    seeds = ", ".join(map(str, sorted({run.seed for run in runs[this]})))
    return (
        f"{this} minus {other}, clip by clip, seeds {seeds}: {compared.difference:+.1f} points "
        f"(95 % interval {compared.low:+.1f} to {compared.high:+.1f})."
    )


def _directions(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """What the sides without and with an order of frames make of motions and their reverses."""
    labels = list(CLASSES)
    reverse = {
        labels.index(label): labels.index(other)
        for label, (moves, _) in CLASSES.items()
        for other in labels
        if other != label and CLASSES[other][0] == moves
    }
    rows = []
    for target, other in sorted(reverse.items()):
        if target < other:
            row = [f"{labels[target]} or {labels[other]}"]
            for side in ("scratch", "small"):
                of_pair = tables[side][tables[side]["target"].isin((target, other))]
                right = (of_pair["predicted"] == of_pair["target"]).mean()
                reversed_ = (of_pair["predicted"] == of_pair["target"].map(reverse)).mean()
                row += [f"{100 * share:.0f}" for share in (right, reversed_)]
            rows.append(row)
    kinds = {target: min(target, other) for target, other in reverse.items()}
    small = tables["small"]
    same_kind = 100 * (small["predicted"].map(kinds) == small["target"].map(kinds)).mean()
    return [
        "The consensus of `small` is the mean and the standard deviation of the frames' features, "
        "whatever their order: a clip and the same clip played backwards are one to it. Of each "
        "pair of opposite motions, in percent of its clips:",
        markdown(
            ("", "scratch: right", f"scratch: {_REVERSED}", "small: right", f"small: {_REVERSED}"),
            rows,
        ),
        f"Which of the four kinds of motion it is, whatever the direction, `small` says rightly of "
        f"{same_kind:.0f} % of the clips (chance 25).",
    ]


def headlines(runs: Sequence[Run]) -> list[Headline]:
    """Each side against the one before, on the seeds whose folds are all there."""
    rows = []
    for data, what in (("sample", "the sample"), ("real", "real clips, cross-validated")):
        done = {side: list(_whole_seeds(data, side, runs).values()) for side in SIDES}
        for other, this in pairwise(SIDES):
            if done[this] and done[other]:
                ours, theirs = (percent(pooled(done[side])) for side in (this, other))
                label = f"top-1 % on {what}, {this}"
                rows.append(Headline(label, ours, f"{other}: {theirs}", ""))
    return rows


def report(runs: Sequence[Run]) -> tuple[str, list[Headline]]:
    """The text of the results file, and its headlines."""
    parts = [
        "# Does it learn?",
        f"{cpu_name()}, {available_cores()} cores; Python {platform.python_version()}, PyTorch "
        f"{torch.__version__}. The last weights are scored with one center view. Intervals "
        "resample sources. Seconds and load average are medians over the trainings: beyond the "
        "number of cores others were computing too, and the seconds say little about the machine.",
        "reference and scratch: R(2+1)D-18 from scratch, with the same batch size, geometry and "
        "epochs. scratch is the recipe `sample`, on real clips a smaller one. small: the recipe "
        "`small`, on the sample without mirroring; its seconds include the features, computed anew "
        "in each training.",
        "The reference: SGD at a constant 0.1, momentum 0.9, weight decay 1e-4 on all parameters, "
        "no warm-up, no augmentation, always the same frames of a clip, no label smoothing, "
        "float32. It does not shuffle: the list is brought into a random order once, as its "
        "preparation does, and every epoch goes through it in that order. Its last, partial batch "
        "of an epoch counts too, so it sees up to a batch more an epoch than scratch.",
    ]
    for data, title in TITLES.items():
        paragraphs = section(data, runs)
        parts += [title, *paragraphs] if paragraphs else []
    return "\n\n".join(parts), headlines(runs)
