"""The clips whose label the model doubts most, by confident learning.

Confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068) counts the clips of a label
that are, without their source, predicted to be of another class with at least the confidence that
is usual for that class. That many clips are listed: those with the least probability of their
label.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.evaluation.cross_validation.features import MOST_CLIPS, learned_problem
from k400tiny_lib.evaluation.cross_validation.folds import CrossValidation
from k400tiny_lib.evaluation.gradcam import choose_frames, strip_of
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import LoadedModel

# A list of half of the clips is of no help: there the head errs too often for its doubts to point
# at labels. On 89 real clips with 10 of the labels changed at random, a third has 9.2 of them.
_LARGEST_SHARE = 1 / 3
_SHOWN = 20


@dataclass(frozen=True)
class DoubtedLabels:
    """The clips whose labels are worth a look.

    Attributes:
        missing: why there is no list, in a sentence; "" where there is one.
        table: one row per clip, most doubted first: video, split, group, label, suggested,
            label_probability (of the given label) and suggested_probability, in [0, 1].
        strips: frames of the first of them in order of time, as data URIs.
        judged, errors: number of clips that were predicted without their source, and of those that
            were given another class than their label.
        not_judged: the clips that could not be judged, in words; "" if all were.
        method: how they were predicted, in words.
    """

    missing: str = ""
    table: pd.DataFrame = field(default_factory=pd.DataFrame)
    strips: Sequence[str] = ()
    judged: int = 0
    errors: int = 0
    not_judged: str = ""
    method: str = ""

    def scores(self) -> dict[str, float]:
        """num_doubted_labels; empty where there is no list."""
        return {} if self.missing else {"num_doubted_labels": float(len(self.table))}

    @property
    def summary(self) -> str:
        """How many there are and where to look, as a line for the console; "" without one."""
        if self.table.empty:
            return ""
        first = self.table.iloc[0]
        return (
            f"labels: {len(self.table)} of {self.judged} clips have a label that the model doubts, "
            f"most of all {first['video']} ({first['label']}, rather {first['suggested']}); see "
            "'Labels to check' in the report"
        )


_HOW = (
    "-P train_layers=head (recipe=small has it): with a frozen backbone each clip can be judged "
    "by a head that has not learned from its source"
)
NO_LIST = DoubtedLabels(f"No list. To get one, train with {_HOW}.")


def doubt_labels(
    validation: CrossValidation | None,
    annotations: Annotations,
    loaded: LoadedModel,
    data_path: Path,
) -> DoubtedLabels:
    """List the clips with doubted labels, and draw the first of them.

    Args:
        validation: the predictions of all clips, if there are any.
        annotations: all clips.
        loaded: the model, whose view of a clip is drawn.
        data_path: directory of the clip folders.
    """
    if validation is None:
        return _missing(annotations, loaded.trained)
    table = validation.table
    positions = doubted_positions(table)
    names = np.array(loaded.class_names, dtype=object)
    probabilities = probabilities_of(table)[positions]
    targets = table["target"].to_numpy()[positions]
    suggested = probabilities.argmax(1)
    rows = np.arange(len(positions))
    doubted = table.iloc[positions][["video"]].assign(
        split=[validation.splits[position] for position in positions],
        group=table["group"].to_numpy()[positions],
        label=names[targets],
        suggested=names[suggested],
        label_probability=probabilities[rows, targets],
        suggested_probability=probabilities[rows, suggested],
    )
    shown = [validation.clips[position] for position in positions[:_SHOWN]]
    return DoubtedLabels(
        table=doubted.reset_index(drop=True),
        strips=_draw(shown, data_path, loaded),
        judged=len(table),
        errors=validation.errors,
        not_judged=validation.not_predicted,
        method=validation.method,
    )


def _missing(annotations: Annotations, trained: Config | None) -> DoubtedLabels:
    if problem := learned_problem(trained):
        return DoubtedLabels(f"No list: {problem}. To get one, train with {_HOW}.")
    if (num_clips := len(list(annotations.clips))) > MOST_CLIPS:
        return DoubtedLabels(
            f"No list: it takes the features of all {num_clips} clips, and is made without being "
            f"asked for up to {MOST_CLIPS}. To get it, evaluate with -P split=all."
        )
    return DoubtedLabels("No list: it takes two classes with clips of two sources each.")


def doubted_positions(table: pd.DataFrame) -> list[int]:
    """Positions of the clips with doubted labels in a table of predictions, most doubted first.

    Args:
        table: predictions of clips by models that have not learned from their sources.

    Returns:
        At most a third of the positions, each of a clip that is predicted to be of another class.
    """
    from cleanlab.count import num_label_issues  # type: ignore[import-untyped]

    present, labels = np.unique(table["target"], return_inverse=True)
    if len(present) < 2:
        return []
    probabilities = probabilities_of(table)[:, present]
    # No probability at all for a class that the head of a fold has not learned.
    probabilities = np.maximum(probabilities, np.finfo(np.float64).tiny)
    probabilities /= probabilities.sum(1, keepdims=True)
    # Its count, and not one of its filters: the filters prune_by_noise_rate, confident_learning and
    # both find fewer of the labels changed in real data in more clips.
    count = min(num_label_issues(labels, probabilities), int(len(table) * _LARGEST_SHARE))
    of_label = probabilities[np.arange(len(table)), labels]
    contradicted = np.flatnonzero(table["predicted"] != table["target"])
    ranked: list[int] = contradicted[np.argsort(of_label[contradicted], kind="stable")].tolist()
    return ranked[:count]


def _draw(clips: Sequence[Clip], data_path: Path, loaded: LoadedModel) -> list[str]:
    dataset = ViewDataset(clips, data_path, loaded.geometry, ViewProtocol(1, 1))
    return [strip_of(choose_frames(dataset[n][0][0])[1]) for n in range(len(clips))]
