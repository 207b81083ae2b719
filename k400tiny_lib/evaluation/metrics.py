"""Scores of a predictions table, and how the report names them.

Adding a metric is one entry in `score` and, to show it in the report, one line in TILES.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import sklearn.metrics
import torch
from scipy.stats import binomtest, bootstrap
from torchmetrics.functional.classification import multiclass_calibration_error

from k400tiny_lib.evaluation.predictions import Floats, Ints, probabilities_of

CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599
_RESAMPLES = 2000


class Tile(NamedTuple):
    """How the report shows a score; `{present}` and `{classes}` in the note are filled in."""

    name: str
    label: str
    unit: str
    note: str


# Shown in this order where `score` has them; with an interval if there are <name>_ci_low and _high.
TILES = (
    Tile("acc5", "top-5", "%", "same protocol"),
    Tile("clip_acc1", "top-1 of one clip", "%", "the central clip and crop alone"),
    Tile("mean_class_acc", "mean class accuracy", "%", "over the {present} classes that occur"),
    Tile("present_acc1", "top-1 among classes present", "%", "of {present}, not {classes}"),
    Tile("present_acc5", "top-5 among classes present", "%", "of {present}, not {classes}"),
    Tile("loss", "loss", "", "mean negative log probability"),
    Tile("ece", "calibration error", "", "15 bins; 0 is perfect"),
)


def score(table: pd.DataFrame, split: str) -> dict[str, float]:
    """The scores of a predictions table.

    Args:
        table: from `predictions.make_table`.
        split: the prefix of the names.

    Returns:
        <split>_loss (mean negative log probability) and, in percent, _acc1, _acc5,
        _mean_class_acc, _clip_acc1 (center view alone), and the bounds _acc1_ci_low, _acc1_ci_high,
        _clip_acc1_ci_low, _clip_acc1_ci_high of 95 % intervals; _ece in [0, 1]. Where the split
        contains only some of the model's classes, _present_acc1 and _present_acc5 choose among
        these alone. Top-5 needs at least 5 classes to choose from.
    """
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    classes = np.arange(probabilities.shape[1])
    present = np.unique(targets)
    correct = table["predicted"] == table["target"]
    clip_correct = table["clip_predicted"] == table["target"]
    low, high = accuracy_interval(correct, table["group"])
    clip_low, clip_high = accuracy_interval(clip_correct, table["group"])
    predicted = table["predicted"]
    recall = sklearn.metrics.recall_score(targets, predicted, labels=present, average="macro")
    scores = {
        "loss": sklearn.metrics.log_loss(targets, probabilities, labels=classes),
        "acc1": 100 * correct.mean(),
        "acc1_ci_low": 100 * low,
        "acc1_ci_high": 100 * high,
        "clip_acc1": 100 * clip_correct.mean(),
        "clip_acc1_ci_low": 100 * clip_low,
        "clip_acc1_ci_high": 100 * clip_high,
        "mean_class_acc": 100 * recall,  # a class without a clip has none
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
    """Share of the clips with their class among the k most probable ones, in [0, 1].

    Args:
        probabilities: float64 (N, K), one column per class.
        targets: int64 (N,), ids among `classes`.
        classes: int64 (K,), ascending.
        k: at most K.
    """
    if k >= len(classes):
        return 1.0
    if len(classes) == 2:  # scikit-learn expects a single column for two classes
        return float((classes[probabilities.argmax(1)] == targets).mean())
    return float(sklearn.metrics.top_k_accuracy_score(targets, probabilities, k=k, labels=classes))


def calibration_error(probabilities: Floats, targets: Ints) -> float:
    """Expected calibration error over 15 equal bins of the confidence, in [0, 1]."""
    p, t = torch.tensor(probabilities), torch.tensor(targets)
    return float(multiclass_calibration_error(p, t, p.shape[1], CALIBRATION_BINS))


def accuracy_interval(correct: "pd.Series[bool]", groups: "pd.Series[str]") -> tuple[float, float]:
    """95 % interval of an accuracy, resampling whole sources.

    Clips of one source are not independent: resampling clips would give too narrow an interval.
    Where all sources have the same accuracy, a bootstrap has no width; the exact binomial interval
    over sources (Clopper-Pearson) replaces it.

    Args:
        correct: bool (N,).
        groups: the source of each clip.

    Returns:
        Lower and upper bound in [0, 1].
    """
    rates = correct.groupby(groups).mean().to_numpy(dtype=np.float64)
    if len(rates) < 2 or np.all(rates == rates[0]):
        exact = binomtest(round(rates[0] * len(rates)), len(rates)).proportion_ci(0.95)
        return float(exact.low), float(exact.high)
    return cluster_bootstrap(correct.astype(np.float64), groups)


def cluster_bootstrap(values: "pd.Series[float]", groups: "pd.Series[str]") -> tuple[float, float]:
    """95 % percentile interval of a mean over clips, resampling whole sources.

    Args:
        values: one number per clip.
        groups: the source of each clip; at least 2 different ones.

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
        # 2000 resamples of thousands of sources at once would be a matrix of gigabytes.
        batch=max(1, 2_000_000 // len(sums)),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def per_class(table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1 (in [0, 1]) and support of the classes that occur or are predicted.

    A class without a clip has no recall and no F1: NaN.
    """
    present = np.union1d(table["target"], table["predicted"])
    columns = sklearn.metrics.precision_recall_fscore_support(
        table["target"], table["predicted"], labels=present, zero_division=0
    )
    scores = dict(zip(("precision", "recall", "f1", "support"), columns, strict=True))
    labels = [class_names[index] for index in present]
    classes = pd.DataFrame({"class_id": present, "label": labels, **scores})
    classes.loc[classes["support"] == 0, ["recall", "f1"]] = np.nan
    return classes


def confused_pairs(table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Pairs of true and wrongly predicted class, most frequent first.

    Returns:
        true, predicted (labels), clips, and share of the true class's clips in [0, 1].
    """
    wrong = table[table["target"] != table["predicted"]]
    pairs = wrong.groupby(["target", "predicted"]).size().rename("clips").reset_index()
    pairs["share"] = pairs["clips"] / pairs["target"].map(table["target"].value_counts())
    pairs["true"] = [class_names[index] for index in pairs["target"]]
    pairs["predicted"] = [class_names[index] for index in pairs["predicted"]]
    columns, ascending = ["clips", "share", "true", "predicted"], [False, False, True, True]
    pairs = pairs.sort_values(columns, ascending=ascending, ignore_index=True)
    return pairs[["true", "predicted", "clips", "share"]]


def reliability(probabilities: Floats, targets: Ints) -> pd.DataFrame:
    """The bins of `calibration_error`, one row each, for a reliability diagram.

    Returns:
        low, high (bounds of the confidence), clips, confidence and accuracy (means within the bin,
        in [0, 1]; NaN where it is empty).
    """
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == targets
    clips = pd.DataFrame({"confidence": confidence, "accuracy": correct}).groupby(
        np.digitize(confidence, edges[1:-1])
    )
    bins = pd.DataFrame({"low": edges[:-1], "high": edges[1:]}).join(clips.size().rename("clips"))
    return bins.fillna({"clips": 0}).astype({"clips": int}).join(clips.mean())
