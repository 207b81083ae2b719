"""Temperature scaling, Guo et al. 2017, arXiv:1706.04599. It never changes a predicted class."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.model_selection import GroupKFold

from k400tiny_lib.evaluation.metrics import calibration_error
from k400tiny_lib.evaluation.predictions import Floats, Ints, probabilities_of

_LOG_RANGE = (np.log(0.05), np.log(20.0))
_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """A temperature fitted on one split and its effect on another.

    Attributes:
        temperature: above 1 it softens the probabilities, below 1 it sharpens them.
        applied: whether using it is recommended, see `calibrate`.
        reason: why or why not, in a sentence.
        fitted_on: number of validation clips that it was fitted on.
        ece_before, ece_after: calibration error on the evaluated split, in [0, 1].
        loss_before, loss_after: mean negative log probability on the evaluated split.
    """

    temperature: float
    applied: bool
    reason: str
    fitted_on: int
    ece_before: float
    ece_after: float
    loss_before: float
    loss_after: float


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


def loss_at(probabilities: Floats, targets: Ints, temperature: float) -> float:
    """Mean negative log probability of the targets at a temperature."""
    logs = _log_scaled(probabilities, temperature)
    return float(-logs[np.arange(len(targets)), targets].mean())


def fit_temperature(probabilities: Floats, targets: Ints) -> float:
    """The temperature in [0.05, 20] with the smallest loss."""

    def loss(log_t: float) -> float:
        return loss_at(probabilities, targets, float(np.exp(log_t)))

    best = minimize_scalar(loss, bounds=_LOG_RANGE, method="bounded")
    return float(np.exp(best.x))


def held_out_gain(probabilities: Floats, targets: Ints, groups: "pd.Series[str]") -> float:
    """By how much a temperature fitted on some sources lowers the mean loss on the others.

    Cross-validated over whole sources; negative where fitting does harm, 0 for a single source.
    """
    folds = min(_FOLDS, groups.nunique())
    if folds < 2:
        return 0.0
    gain = 0.0
    for fit, held_out in GroupKFold(folds).split(probabilities, targets, groups):
        temperature = fit_temperature(probabilities[fit], targets[fit])
        before = loss_at(probabilities[held_out], targets[held_out], 1.0)
        after = loss_at(probabilities[held_out], targets[held_out], temperature)
        gain += (before - after) * len(held_out) / len(targets)
    return gain


def calibrate(fitting: pd.DataFrame, table: pd.DataFrame) -> Calibration:
    """Fit a temperature on predictions of the validation clips and measure it on another table.

    The temperature is applied if it lowers the mean loss of validation clips that it was not fitted
    on (cross-validated over sources) and the calibration error of the evaluated split.
    """
    probabilities, targets = probabilities_of(fitting), fitting["target"].to_numpy()
    temperature = fit_temperature(probabilities, targets)
    gain = held_out_gain(probabilities, targets, fitting["group"])
    p, t = probabilities_of(table), table["target"].to_numpy()
    before, after = calibration_error(p, t), calibration_error(scale(p, temperature), t)
    losses = loss_at(p, t, 1.0), loss_at(p, t, temperature)
    if gain <= 0:
        reason = "on validation clips that it was not fitted on it does not lower the loss"
    elif after >= before:
        reason = "it helps on validation clips, but does not lower the calibration error here"
    else:
        reason = "it lowers the loss on held-out validation clips and the calibration error here"
    applied = gain > 0 and after < before
    return Calibration(temperature, applied, reason, len(fitting), before, after, *losses)
