"""Temperature scaling, Guo et al. 2017, arXiv:1706.04599. It never changes a predicted class.

Where every validation clip is labeled correctly, the likeliest temperature is 0: all answers would
be certain. So the fit is regularized, and sharpening needs mistakes that bound it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from k400tiny_lib.evaluation.metrics import calibration_error
from k400tiny_lib.evaluation.predictions import Floats, Ints, probabilities_of

_LOG_RANGE = (np.log(0.05), np.log(20.0))
_AT_EDGE = 0.01  # of the range, in log temperature
_FOLDS = 5
# If only one source has mistakes, a temperature that they bound is never judged by another mistake.
_FEWEST_SOURCES_WITH_ERRORS = 2


@dataclass(frozen=True)
class Calibration:
    """A temperature chosen on the validation clips, and its effect on another split.

    Attributes:
        temperature: the one to use. Above 1 it softens the probabilities, below 1 it sharpens them;
            1 where none is applied.
        applied: whether the fitted temperature is used; validation clips alone decide.
        reason: why or why not, in a sentence.
        fitted: the temperature with the smallest regularized loss, None if there is none in range.
        fitted_on, errors: number of validation clips, and how many of them are labeled wrongly.
        ece_before, ece_after: calibration error on the evaluated split, in [0, 1], at temperature 1
            and at `temperature`.
        loss_before, loss_after: mean negative log probability on the evaluated split.
    """

    temperature: float
    applied: bool
    reason: str
    fitted: float | None
    fitted_on: int
    errors: int
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float

    @property
    def statement(self) -> str:
        """What was done, in a sentence."""
        clips = f"{self.fitted_on} validation clips, {self.errors} of them labeled wrongly"
        if self.applied:
            return f"Probabilities are at temperature {self.temperature:.3f}, fitted on {clips}."
        return f"Probabilities are not scaled: {self.reason} ({clips})."


def scale(probabilities: Floats, temperature: float) -> Floats:
    """Probabilities at a temperature, float64 (N, K): softmax(log p / temperature).

    For one view this equals the softmax of its logits divided by the temperature; for averaged
    views it is the same operation on their mean.
    """
    return np.exp(_log_scaled(probabilities, temperature))


def _log_scaled(probabilities: Floats, temperature: float) -> Floats:
    floor = np.finfo(np.float64).tiny  # log(0) is -inf
    scaled: Floats = log_softmax(np.log(np.maximum(probabilities, floor)) / temperature, axis=1)
    return scaled


def loss_at(probabilities: Floats, targets: Ints, temperature: float, doubt: float = 0.0) -> float:
    """Mean cross-entropy of the targets at a temperature.

    Args:
        probabilities: float64 (N, K).
        targets: int64 (N,).
        temperature: above 0.
        doubt: probability that a clip is of another class than its target, spread evenly over
            these, in [0, 1).
    """
    logs = _log_scaled(probabilities, temperature)
    true = logs[np.arange(len(targets)), targets]
    others = (logs.sum(1) - true) / max(1, logs.shape[1] - 1)
    return float(-((1 - doubt) * true + doubt * others).mean())


def doubt_of(num_sources: int) -> float:
    """How far a target is from certain, given so many independent observations.

    Platt's targets (1999, "Probabilistic outputs for support vector machines"): the true class gets
    (n + 1) / (n + 2), the rule of succession, and no temperature has an infinite gain. Clips of one
    source resemble one another, so sources are counted.
    """
    return 1 / (num_sources + 2)


def fit_temperature(probabilities: Floats, targets: Ints, doubt: float) -> float | None:
    """The temperature within (0.05, 20) with the smallest loss; None if it is at an edge."""

    def loss(log_t: float) -> float:
        return loss_at(probabilities, targets, float(np.exp(log_t)), doubt)

    # In 1 / temperature the loss is convex, so there is one minimum.
    best = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded", options={"xatol": 1e-6})
    low, high = _LOG_RANGE
    inside = low + _AT_EDGE < best.x < high - _AT_EDGE
    return float(np.exp(best.x)) if inside else None


def choose_temperature(
    probabilities: Floats, targets: Ints, groups: npt.NDArray[np.object_], doubt: float
) -> tuple[float, str]:
    """The fitted temperature, or 1 and what is against the fitted one.

    Args:
        probabilities: float64 (N, K).
        targets: int64 (N,).
        groups: the source of each clip.
        doubt: see `doubt_of`.
    """
    fitted = fit_temperature(probabilities, targets, doubt)
    if fitted is None:
        return 1.0, "no temperature between 0.05 and 20 has the smallest loss"
    if fitted >= 1:
        return fitted, ""
    sources = len(set(groups[probabilities.argmax(1) != targets]))
    if sources < _FEWEST_SOURCES_WITH_ERRORS:
        count = "only one source has" if sources else "no source has"
        return 1.0, (
            f"temperature {fitted:.2f} would make the answers more certain, and {count} a mistake "
            "that could bound it"
        )
    return fitted, ""


def held_out_gain(
    probabilities: Floats, targets: Ints, groups: npt.NDArray[np.object_], doubt: float
) -> float:
    """By how much temperatures chosen on some sources lower the mean loss on the others.

    Cross-validated over whole sources; those with mistakes are spread over the folds, so that one
    mistake bounds the fit while another judges it. Negative where scaling does harm, 0 for a single
    source.
    """
    wrong = pd.Series(probabilities.argmax(1) != targets).groupby(groups).any()
    order = wrong.sort_values(ascending=False, kind="stable").index
    folds = min(_FOLDS, len(order))
    if folds < 2:
        return 0.0
    fold_of = dict(zip(order, np.arange(len(order)) % folds, strict=True))
    fold = np.array([fold_of[group] for group in groups])
    gain = 0.0
    for number in range(folds):
        fit, held_out = fold != number, fold == number
        temperature, _ = choose_temperature(probabilities[fit], targets[fit], groups[fit], doubt)
        clips = probabilities[held_out], targets[held_out]
        change = loss_at(*clips, 1.0, doubt) - loss_at(*clips, temperature, doubt)
        gain += change * held_out.mean()
    return gain


def calibrate(fitting: pd.DataFrame, table: pd.DataFrame) -> Calibration:
    """Choose a temperature on predictions of the validation clips and measure it on another table.

    The fitted temperature is applied if it lowers the mean loss of validation clips that it was not
    fitted on; the other table has no say in it. The best epoch was chosen on the same validation
    clips, so they are somewhat easier than new ones: a further reason not to sharpen lightly.
    """
    probabilities, targets = probabilities_of(fitting), fitting["target"].to_numpy()
    groups = fitting["group"].to_numpy(dtype=object)
    doubt = doubt_of(fitting["group"].nunique())
    temperature, problem = choose_temperature(probabilities, targets, groups, doubt)
    if not problem and held_out_gain(probabilities, targets, groups, doubt) <= 0:
        problem = (
            f"temperature {temperature:.2f} does not lower the loss of validation clips that it "
            "was not fitted on"
        )
    used = 1.0 if problem else temperature
    p, t = probabilities_of(table), table["target"].to_numpy()
    return Calibration(
        temperature=used,
        applied=not problem,
        reason=problem or "it lowers the loss of validation clips that it was not fitted on",
        fitted=fit_temperature(probabilities, targets, doubt),
        fitted_on=len(fitting),
        errors=int((probabilities.argmax(1) != targets).sum()),
        ece_before=calibration_error(p, t),
        ece_after=calibration_error(scale(p, used), t),
        loss_before=loss_at(p, t, 1.0),
        loss_after=loss_at(p, t, used),
    )
