"""The confidence below which an answer is marked as unknown, and what it catches."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.predictions import Floats, probabilities_of

KEPT = 0.95  # of right answers
CERTAIN = 0.99  # a confidence that reads as "no doubt"


@dataclass(frozen=True)
class Marked:
    """Answers of one kind, and how many of them a threshold marks.

    Attributes:
        clips: how many there are.
        below: share that is below the threshold, in [0, 1].
        certain: share with a confidence above 0.99, in [0, 1].
    """

    clips: int
    below: float
    certain: float


@dataclass(frozen=True)
class Threshold:
    """A confidence threshold chosen on the validation clips, and its effect on another split.

    Attributes:
        value: of the largest probability at the temperature in use, in [0, 1]; an answer below it
            is marked as unknown. 0 where there is none.
        reason: how it was chosen, or why there is none, in a sentence.
        right, wrong: the answers on the evaluated split.
    """

    value: float
    reason: str
    right: Marked
    wrong: Marked

    @property
    def statement(self) -> str:
        """What was done, in a sentence."""
        if not self.value:
            return f"There is no confidence threshold: {self.reason}."
        return f"The confidence threshold is {self.value:.3f}: {self.reason}."

    def scores(self) -> dict[str, float]:
        """confidence_threshold and, in percent where there are any, right_kept, wrong_caught."""
        shares = {"confidence_threshold": self.value}
        if self.right.clips:
            shares["right_kept"] = 100 * (1 - self.right.below)
        if self.wrong.clips:
            shares["wrong_caught"] = 100 * self.wrong.below
        return shares

    def __str__(self) -> str:
        """The statement, and what it means for the evaluated split."""
        if not self.value:
            return self.statement
        parts = [
            f"{marked.clips * share:.0f} of {marked.clips} {text}"
            for marked, share, text in (
                (self.right, 1 - self.right.below, "right answers reach it"),
                (self.wrong, self.wrong.below, "wrong ones do not"),
            )
        ]
        return f"{self.statement} Here {' and '.join(parts)}."


def lower_quantile(confidence: Floats, groups: npt.NDArray[np.object_], kept: float) -> float:
    """The largest threshold that a clip of a new source reaches with a probability of `kept`.

    The quantile of split conformal prediction for clips that come in sources (Lee, Barber and
    Willett 2023, arXiv:2306.06342, HCP): each source weighs 1 / (G + 1), its clips share that
    evenly, and the rest lies below all of them, for the source to come. With one clip a source it
    is the rank floor((1 - kept) * (G + 1)) of split conformal prediction (Vovk et al. 2005).

    Args:
        confidence: float64 (N,), in [0, 1].
        groups: the source of each clip.
        kept: in (0, 1).

    Returns:
        One of the confidences; 0 where there are too few sources: fewer than kept / (1 - kept).
    """
    names, inverse, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(-confidence, kind="stable")
    weights = 1 / ((len(names) + 1) * sizes[inverse[order]])
    enough = np.cumsum(weights) >= kept - 1e-9  # sums of many weights are rounded
    return float(confidence[order][enough.argmax()]) if enough.any() else 0.0


def mark(confidence: Floats, threshold: float) -> Marked:
    """How many answers a threshold marks, from float64 (N,); shares of none are 0."""
    if not len(confidence):
        return Marked(0, 0.0, 0.0)
    below, certain = (confidence < threshold).mean(), (confidence > CERTAIN).mean()
    return Marked(len(confidence), float(below), float(certain))


def choose_threshold(
    fitting: pd.DataFrame, table: pd.DataFrame, temperature: float = 1.0
) -> Threshold:
    """Choose a threshold that 95 % of the right answers reach, and measure it on another table.

    Args:
        fitting: predictions of the validation clips.
        table: predictions of the evaluated split.
        temperature: at which the confidence is taken.
    """
    confidence, right = _answers(fitting, temperature)
    groups = fitting["group"].to_numpy(dtype=object)[right]
    num_sources, needed = len(set(groups)), round(KEPT / (1 - KEPT))
    value = lower_quantile(confidence[right], groups, KEPT)
    if num_sources < needed:
        reason = (
            f"validation clips of {num_sources} sources are labeled correctly, and a promise about "
            f"{100 * KEPT:.0f} % of the right answers takes {needed} sources"
        )
    else:
        reason = (
            f"at least {100 * KEPT:.0f} % of the right answers on new sources are expected to "
            f"reach it, to judge by {right.sum()} validation clips of {num_sources} sources that "
            "are labeled correctly"
        )
    confidence, right = _answers(table, temperature)
    return Threshold(value, reason, mark(confidence[right], value), mark(confidence[~right], value))


def _answers(table: pd.DataFrame, temperature: float) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """The confidence of each answer, and whether it is right."""
    right = (table["predicted"] == table["target"]).to_numpy()
    return confidences(table, temperature), right


def confidences(table: pd.DataFrame, temperature: float) -> Floats:
    """The largest probability of each clip at a temperature, float64 (N,)."""
    largest: Floats = scale(probabilities_of(table), temperature).max(1)
    return largest
