"""Scores from the predictions table alone, so that anybody can recompute them."""

import numpy as np
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

from k400tiny_lib.evaluation.predictions import probabilities_of

_CALIBRATION_BINS = 15  # Guo et al. 2017, arXiv:1706.04599
_RESAMPLES = 2000


def score(table: pd.DataFrame, split: str) -> dict[str, float]:
    """The scores of a predictions table.

    Args:
        table: what `predictions.predict_clips` returns.
        split: the prefix of the names.

    Returns:
        <split>_loss (mean negative log probability), _acc1, _acc5 (left out below 5 classes),
        _clip_acc1 (centre view alone), _mean_class_acc and the bounds _acc1_ci_low and
        _acc1_ci_high of a 95 % interval, all in percent; _ece in [0, 1].
    """
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    num_classes = probabilities.shape[1]
    classes = np.arange(num_classes)
    correct = table["predicted"] == table["target"]
    low, high = grouped_interval(correct, table["group"])
    scores = {
        "loss": log_loss(targets, probabilities, labels=classes),
        "acc1": 100 * correct.mean(),
        "clip_acc1": 100 * (table["clip_predicted"] == table["target"]).mean(),
        # Over the classes that occur: those without a clip have no recall.
        "mean_class_acc": 100 * recall_score(
            targets, table["predicted"], labels=np.unique(targets), average="macro",
        ),
        "ece": float(
            multiclass_calibration_error(
                torch.tensor(probabilities), torch.tensor(targets),
                num_classes=num_classes, n_bins=_CALIBRATION_BINS,
            )
        ),
        "acc1_ci_low": 100 * low,
        "acc1_ci_high": 100 * high,
    }  # fmt: skip
    if num_classes >= 5:
        labels = classes if num_classes > 2 else None
        scores["acc5"] = (
            100 * top_k_accuracy_score(targets, probabilities, k=5, labels=labels)
            if num_classes > 5
            else 100.0
        )
    return {f"{split}_{name}": float(value) for name, value in scores.items()}


def grouped_interval(correct: "pd.Series[bool]", groups: "pd.Series[str]") -> tuple[float, float]:
    """95 % interval of the accuracy, resampling whole sources.

    Clips of one source are alike, so resampling clips would claim too much certainty. Where all
    sources agree a bootstrap has no width; the exact binomial interval over sources stands in.

    Returns:
        Lower and upper bound in [0, 1].
    """
    per_group = correct.groupby(groups).agg(["sum", "count"]).to_numpy(dtype=np.float64)
    hits, counts = per_group.T
    rates = hits / counts
    if len(rates) < 2 or np.all(rates == rates[0]):
        exact = binomtest(round(rates[0] * len(rates)), len(rates)).proportion_ci(0.95)
        return float(exact.low), float(exact.high)
    result = bootstrap(
        (hits, counts),
        lambda h, n, axis: h.sum(axis) / n.sum(axis),
        paired=True, vectorized=True, n_resamples=_RESAMPLES, method="percentile", rng=0,
    )  # fmt: skip
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def per_class(table: pd.DataFrame, class_names: list[str]) -> pd.DataFrame:
    """Precision, recall, F1 (in [0, 1]) and support of the classes that occur or are predicted."""
    present = np.union1d(table["target"], table["predicted"])
    precision, recall, f1, support = precision_recall_fscore_support(
        table["target"], table["predicted"], labels=present, zero_division=0
    )
    return pd.DataFrame(
        {
            "class_id": present,
            "label": [class_names[index] for index in present],
            "precision": precision, "recall": recall, "f1": f1, "support": support,
        }
    )  # fmt: skip
