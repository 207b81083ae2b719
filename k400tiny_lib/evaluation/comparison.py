"""Compares two models on the same clips: is the difference more than chance?"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip, unknown_labels
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.metrics import cluster_bootstrap
from k400tiny_lib.evaluation.predictions import table_of_probabilities
from k400tiny_lib.media.sampling import view_indices

_NEEDED = ("video", "target", "predicted")


@dataclass(frozen=True)
class PairedComparison:
    """A paired comparison; accuracies and their difference in percent.

    Attributes:
        acc1, other_acc1: of this model and of the other.
        difference: acc1 - other_acc1.
        low, high: 95 % interval of the difference, resampling sources.
        only_this, only_other: clips that only one of the two labels correctly.
        mcnemar_p: exact McNemar test of equal accuracy. It assumes independent clips. Clips of one
            source are not, so prefer the interval.
    """

    acc1: float
    other_acc1: float
    difference: float
    low: float
    high: float
    only_this: int
    only_other: int
    mcnemar_p: float


class Classifier(Protocol):
    """A registered model: it takes whole frames and crops the center itself."""

    @property
    def class_names(self) -> list[str]: ...
    @property
    def clip_len(self) -> int: ...
    def predict(self, frames: npt.NDArray[np.uint8], /) -> npt.NDArray[np.float32]:
        """uint8 (N, T, H, W, 3), RGB, to probabilities (N, K)."""


def align(
    other: pd.DataFrame, clips: Sequence[Clip], parameter: str = "compare_with"
) -> pd.DataFrame:
    """Put the predictions of another evaluation in the order of these clips.

    Raises:
        UserError: if they are no predictions, or of other clips, or give a clip another target.
    """
    missing = [column for column in _NEEDED if column not in other.columns]
    if missing:
        raise UserError(
            f"{parameter}: its predictions have no column {missing[0]!r}. "
            "Needed: predictions.csv of evaluate."
        )
    order, videos = [clip.video for clip in clips], other["video"].astype(str)
    ours, theirs = set(order), set(videos)
    if ours != theirs or len(other) != len(clips):
        raise UserError(
            f"{parameter}: it was evaluated on other clips ({len(ours & theirs)} of {len(ours)} "
            f"in common, first difference {min(ours ^ theirs, default='a clip that occurs twice')}"
            "). Needed: the same split of the same data."
        )
    aligned = other.set_index(videos).loc[order].reset_index(drop=True)
    if not np.array_equal(aligned["target"], [clip.target for clip in clips]):
        raise UserError(f"{parameter}: its targets differ. Needed: the same classes and ids.")
    return aligned


def compare_predictions(
    table: pd.DataFrame, predicted: "pd.Series[int]", other: "pd.Series[int]"
) -> PairedComparison:
    """Compare two predicted classes of each clip of a table with its columns target and group."""
    groups, targets = table["group"], table["target"].to_numpy()
    this_correct, other_correct = predicted.to_numpy() == targets, other.to_numpy() == targets
    gain = pd.Series(this_correct.astype(np.float64) - other_correct, groups.index)
    only_this = int((this_correct & ~other_correct).sum())
    only_other = int((other_correct & ~this_correct).sum())
    per_group = gain.groupby(groups).mean()
    if per_group.nunique() == 1 and per_group.iloc[0] == 0:
        low = high = 0.0  # no source tells them apart
    elif len(per_group) < 2:
        low, high = -1.0, 1.0  # from a single source nothing follows for others
    else:
        low, high = cluster_bootstrap(gain, groups)
    discordant = only_this + only_other
    p_value = float(binomtest(only_this, discordant, 0.5).pvalue) if discordant else 1.0
    means = this_correct.mean(), other_correct.mean(), gain.mean()
    acc1, other_acc1, difference, low, high = (100 * float(v) for v in (*means, low, high))
    return PairedComparison(acc1, other_acc1, difference, low, high, only_this, only_other, p_value)


def predict_frames(
    classifier: Classifier, clips: Sequence[Clip], annotations: Annotations, config: Config
) -> pd.DataFrame:
    """The predictions table of another model for the clips and the views of an evaluation.

    Raises:
        UserError: if the model has other classes, or there are views beyond the center crop.
    """
    if unknown := unknown_labels(annotations.categories, classifier.class_names):
        raise UserError(
            f"compare_with: the model does not know {unknown[0]!r} by the data's id. "
            "Needed: a model of the same classes."
        )
    if config.num_crops != 1:
        raise UserError("num_crops: a registered model crops the center itself. Needed: 1.")
    averaged = []
    for clip in clips:
        times = view_indices(clip.num_frames, classifier.clip_len, config.num_clips)  # (V, T)
        indices = (times + clip.segment[0]).flatten().tolist()
        frames = read_frames(Path(config.data_path, clip.video), indices)
        views = frames.unflatten(0, times.shape).numpy()  # (V, T, H, W, C)
        averaged.append(np.concatenate([classifier.predict(view[None]) for view in views]).mean(0))
    return table_of_probabilities(clips, np.stack(averaged).astype(np.float64))


@dataclass(frozen=True)
class OtherModel:
    """The model of `compare_with`: its name for the report, and its predictions or itself."""

    name: str
    predictor: pd.DataFrame | Classifier

    def predictions(
        self, clips: Sequence[Clip], annotations: Annotations, config: Config
    ) -> pd.DataFrame:
        """Its predictions of the evaluated clips; raises like `align` and `predict_frames`."""
        if isinstance(self.predictor, pd.DataFrame):
            return align(self.predictor, clips)
        return predict_frames(self.predictor, clips, annotations, config)
