"""Scores from the predictions table alone, so that anybody can recompute them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from scipy.stats import binomtest, bootstrap
from sklearn.metrics import (
    log_loss,
    precision_recall_fscore_support,
    recall_score,
    top_k_accuracy_score,
)
from torchmetrics.functional.classification import multiclass_calibration_error

from k400tiny_lib.evaluation.predictions import Floats, Ints, probabilities_of

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599
_RESAMPLES = 2000


def score(table: pd.DataFrame, split: str) -> dict[str, float]:
    """The scores of a predictions table.

    Args:
        table: what `predictions.make_table` returns.
        split: the prefix of the names.

    Returns:
        <split>_loss (mean negative log probability) and, in percent, _acc1, _acc5,
        _mean_class_acc, _clip_acc1 (centre view alone), the bounds _acc1_ci_low, _acc1_ci_high,
        _clip_acc1_ci_low, _clip_acc1_ci_high of 95 % intervals; _ece in [0, 1]. Where the split
        holds a part of the model's classes, _present_acc1 and _present_acc5 choose among these
        alone. Top-5 needs at least 5 classes to choose from.
    """
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    classes = np.arange(probabilities.shape[1])
    present = np.unique(targets)
    correct = table["predicted"] == table["target"]
    clip_correct = table["clip_predicted"] == table["target"]
    low, high = grouped_interval(correct, table["group"])
    clip_low, clip_high = grouped_interval(clip_correct, table["group"])
    scores = {
        "loss": log_loss(targets, probabilities, labels=classes),
        "acc1": 100 * correct.mean(),
        "acc1_ci_low": 100 * low,
        "acc1_ci_high": 100 * high,
        "clip_acc1": 100 * clip_correct.mean(),
        "clip_acc1_ci_low": 100 * clip_low,
        "clip_acc1_ci_high": 100 * clip_high,
        # Over the classes that occur: those without a clip have no recall.
        "mean_class_acc": 100
        * recall_score(targets, table["predicted"], labels=present, average="macro"),
        "ece": calibration_error(probabilities, targets),
    }
    if len(classes) >= 5:
        scores["acc5"] = 100 * top_k(probabilities, targets, classes, 5)
    if 1 < len(present) < len(classes):
        among = probabilities[:, present]
        scores["present_acc1"] = 100 * top_k(among, targets, present, 1)
        if len(present) >= 5:
            scores["present_acc5"] = 100 * top_k(among, targets, present, 5)
    return {f"{split}_{name}": float(value) for name, value in scores.items()}


def top_k(probabilities: Floats, targets: Ints, classes: Ints, k: int) -> float:
    """Share of the clips whose class is among the k most probable ones, in [0, 1].

    Args:
        probabilities: float64 (N, K), one column per class.
        targets: int64 (N,), ids among `classes`.
        classes: int64 (K,), ascending.
        k: at most K.
    """
    if k >= len(classes):
        return 1.0
    if len(classes) == 2:  # scikit-learn takes two classes for a binary problem with one column
        return float((classes[probabilities.argmax(1)] == targets).mean())
    return float(top_k_accuracy_score(targets, probabilities, k=k, labels=classes))


def calibration_error(probabilities: Floats, targets: Ints) -> float:
    """Expected calibration error over 15 equal bins of the confidence, in [0, 1]."""
    return float(
        multiclass_calibration_error(
            torch.tensor(probabilities),
            torch.tensor(targets),
            num_classes=probabilities.shape[1],
            n_bins=CALIBRATION_BINS,
        )
    )


def grouped_interval(correct: "pd.Series[bool]", groups: "pd.Series[str]") -> tuple[float, float]:
    """95 % interval of an accuracy, resampling whole sources.

    Clips of one source are alike, so resampling clips would claim too much certainty. Where all
    sources agree a bootstrap has no width; the exact binomial interval over sources stands in.

    Returns:
        Lower and upper bound in [0, 1].
    """
    rates = correct.groupby(groups).mean().to_numpy(dtype=np.float64)
    if len(rates) < 2 or np.all(rates == rates[0]):
        exact = binomtest(round(rates[0] * len(rates)), len(rates)).proportion_ci(0.95)
        return float(exact.low), float(exact.high)
    return grouped_bootstrap(correct.astype(np.float64), groups)


def grouped_bootstrap(values: "pd.Series[float]", groups: "pd.Series[str]") -> tuple[float, float]:
    """95 % percentile interval of a mean over clips, resampling whole sources.

    Args:
        values: one number per clip.
        groups: the source of each clip, at least 2 of them.

    Returns:
        Lower and upper bound, in the unit of the values.
    """
    sums, counts = values.groupby(groups).agg(["sum", "count"]).to_numpy(dtype=np.float64).T
    result = bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        method="percentile",
        rng=0,
        # Sources in the thousands would make 2000 resamples of them a matrix of gigabytes.
        batch=max(1, 2_000_000 // len(sums)),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def per_class(table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 (in [0, 1]) and support of the classes that occur or are predicted."""
    present = np.union1d(table["target"], table["predicted"])
    precision, recall, f1, support = precision_recall_fscore_support(
        table["target"], table["predicted"], labels=present, zero_division=0
    )
    return pd.DataFrame(
        {
            "class_id": present,
            "label": [class_names[index] for index in present],
            "precision": precision,
            "recall": recall,
            "f1": f1,
            "support": support,
        }
    )


def confused_pairs(table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Which class is taken for which, most frequent first.

    Returns:
        true, predicted (labels), clips, and share of the true class's clips in [0, 1].
    """
    wrong = table[table["target"] != table["predicted"]]
    counts = wrong.groupby(["target", "predicted"]).size().rename("clips").reset_index()
    support = table["target"].value_counts()
    pairs = pd.DataFrame(
        {
            "true": [class_names[index] for index in counts["target"]],
            "predicted": [class_names[index] for index in counts["predicted"]],
            "clips": counts["clips"],
            "share": counts["clips"] / counts["target"].map(support),
        }
    )
    return pairs.sort_values(
        ["clips", "share", "true", "predicted"], ascending=[False, False, True, True]
    ).reset_index(drop=True)


def reliability(probabilities: Floats, targets: Ints) -> pd.DataFrame:
    """The bins behind `calibration_error`.

    Returns:
        low, high (bounds of the confidence), clips, confidence and accuracy (means within the bin,
        in [0, 1]; NaN where it is empty).
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="right") - 1, 0, CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)

    def mean_of(values: npt.NDArray[np.generic]) -> Floats:
        sums = np.bincount(bins, weights=values.astype(np.float64), minlength=CALIBRATION_BINS)
        means: Floats = np.full(len(counts), np.nan)
        np.divide(sums, counts, out=means, where=counts > 0)
        return means

    return pd.DataFrame(
        {
            "low": edges[:-1],
            "high": edges[1:],
            "clips": counts,
            "confidence": mean_of(confidence),
            "accuracy": mean_of(correct),
        }
    )
