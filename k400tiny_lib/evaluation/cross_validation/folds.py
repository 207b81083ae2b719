"""Predictions of every clip by a head that was fitted to the features of other sources only."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import SPLITS, Annotations, Clip
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.cross_validation.features import learned_problem
from k400tiny_lib.evaluation.predictions import Floats, Ints, make_table, probability_columns

MOST_FOLDS = 5
_ATTEMPTS = 10
_MAX_NAMED = 20
# The inverse of the L2 penalty, for features whose squares add up to about 1. Between 30 and 1000
# the accuracy on the clips of 11 real classes and the doubted labels found are the same, and a
# strength chosen within each fold is no better.
_STRENGTH = 100.0


@dataclass(frozen=True)
class CrossValidation:
    """The predictions of all clips by heads that were fitted without their sources.

    Attributes:
        clips, splits: the clips that are predicted, and the split of each.
        table: their predictions table.
        num_folds: how many heads there are.
        alone: label -> number of its clips that are not predicted: there is no other source of
            their class to learn from.
    """

    clips: Sequence[Clip]
    splits: Sequence[str]
    table: pd.DataFrame
    num_folds: int
    alone: dict[str, int]

    @property
    def errors(self) -> int:
        """How many clips get another class than their label."""
        return int((self.table["predicted"] != self.table["target"]).sum())

    @property
    def not_predicted(self) -> str:
        """The clips that are not predicted, in words; "" if all are."""
        if not self.alone:
            return ""
        labels = [f"{label} ({count})" for label, count in self.alone.items()]
        named = ", ".join(labels[:_MAX_NAMED]) + (", ..." if len(labels) > _MAX_NAMED else "")
        return (
            f"{sum(self.alone.values())} clips of classes whose clips are all of one source, so "
            f"that no other clip teaches them: {named}"
        )

    @property
    def method(self) -> str:
        """How the clips were predicted, in words."""
        return (
            "the head is logistic regression on features of the frozen backbone, fitted "
            f"{self.num_folds} times without the sources that it predicts"
        )


def cross_validate(
    annotations: Annotations, features: Floats, center: Floats, num_classes: int
) -> CrossValidation | None:
    """Predict all clips, each with a head that was fitted to clips of other sources.

    Args:
        annotations: their clips.
        features: float64 (N, C), averaged over the views, of all clips in the annotations' order.
        center: float64 (N, C), of the center views alone.
        num_classes: of the model.

    Returns:
        None where no clip can be predicted: there are too few sources.
    """
    clips = list(annotations.clips)
    splits = [name for name in SPLITS for _ in annotations.splits[name]]
    targets = np.array([clip.target for clip in clips], dtype=np.int64)
    folds, known = assign_folds(targets, [clip.group for clip in clips])
    predicted = np.flatnonzero(known)
    if not len(predicted):
        return None
    probabilities = _predict(features, targets, folds, num_classes)
    of_center = probabilities
    if not np.array_equal(center, features):  # several views
        of_center = _predict(center, targets, folds, num_classes)
    rows = probability_columns(probabilities).assign(clip_predicted=of_center.argmax(1))
    kept = [clips[position] for position in predicted]
    names = annotations.class_names
    return CrossValidation(
        clips=kept,
        splits=[splits[position] for position in predicted],
        table=make_table(kept, [rows.iloc[predicted].reset_index(drop=True)]),
        num_folds=len(np.unique(folds[predicted])),
        alone=dict(sorted(Counter(names[target] for target in targets[~known]).items())),
    )


def _predict(features: Floats, targets: Ints, folds: Ints, num_classes: int) -> Floats:
    """Class probabilities, float64 (N, num_classes), by heads fitted to the other folds."""
    probabilities = np.zeros((len(features), num_classes))
    for fold in np.unique(folds):
        held_out, fitted = folds == fold, folds != fold
        if len(np.unique(targets[fitted])) > 1:
            head = fit_head(features[fitted], targets[fitted])
            cells = np.ix_(held_out, head.classes_)
            probabilities[cells] = head.predict_proba(features[held_out])
    return probabilities


def fit_head(features: Floats, targets: Ints) -> Pipeline:
    """Fit a linear head: multinomial logistic regression on standardized features.

    The model's own head is linear, too. Fitted to convergence, it needs no learning rate and no
    best epoch, which would take validation clips.

    Args:
        features: float64 (N, C).
        targets: int64 (N,), at least 2 classes.
    """
    head = make_pipeline(
        StandardScaler(), LogisticRegression(C=_STRENGTH / features.shape[1], max_iter=1000)
    )
    # The matrices are small: on cores that others use, threads that wait for one another take
    # 50 times as long as one.
    with threadpool_limits(1):
        return head.fit(features, targets)


def assign_folds(targets: Ints, groups: Sequence[str]) -> tuple[Ints, npt.NDArray[np.bool_]]:
    """Divide sources among up to 5 folds, so that each has about the same share of every class.

    Args:
        targets: int64 (N,).
        groups: the source of each clip.

    Returns:
        int64 (N,), the fold of each clip; and bool (N,), whether a head that is fitted to the other
        folds knows its class and another one: a class needs two sources.
    """
    sources = pd.Series(groups, dtype=object).groupby(targets).nunique()
    alone = np.isin(targets, sources.index[sources < 2])
    num_folds = min(MOST_FOLDS, len(set(groups)), max(Counter(targets).values(), default=0))
    folds, known = np.zeros_like(targets), np.zeros(len(targets), dtype=bool)
    if num_folds < 2:
        return folds, known
    for seed in range(_ATTEMPTS):  # where sources have clips of many classes, one may fail
        drawn = _draw(targets, groups, num_folds, seed)
        known_now = _known_elsewhere(drawn, targets)
        if seed == 0 or known_now.sum() > known.sum():
            folds, known = drawn, known_now
        if (known | alone).all():
            break
    return folds, known


def _draw(targets: Ints, groups: Sequence[str], num_folds: int, seed: int) -> Ints:
    folds = np.empty_like(targets)
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer clips than folds
        for number, (_, held_out) in enumerate(splitter.split(targets, targets, groups)):
            folds[held_out] = number
    return folds


def _known_elsewhere(folds: Ints, targets: Ints) -> npt.NDArray[np.bool_]:
    known = np.zeros(len(targets), dtype=bool)
    for fold in np.unique(folds):
        held_out = folds == fold
        classes = np.unique(targets[~held_out])
        known[held_out] = np.isin(targets[held_out], classes) & (len(classes) > 1)
    return known


def cross_validated_clips(annotations: Annotations, trained: Config | None) -> list[Clip]:
    """The clips that `cross_validate` predicts; known before anything is computed.

    Raises:
        UserError: if the backbone may have learned from them, or none can be predicted.
    """
    if problem := learned_problem(trained):
        raise UserError(
            f"split: all, but {problem}. Needed: a checkpoint of train_layers=head (recipe=small, "
            "say), or split=test."
        )
    clips = list(annotations.clips)
    targets = np.array([clip.target for clip in clips], dtype=np.int64)
    _, known = assign_folds(targets, [clip.group for clip in clips])
    if not known.any():
        raise UserError("split: all needs two classes with clips of two sources each.")
    return [clips[position] for position in np.flatnonzero(known)]
