"""Every score, recomputed from the text of predictions.csv by other means."""

import io
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.metrics import (
    accuracy_interval,
    calibration_error,
    cluster_bootstrap,
    confused_pairs,
    per_class,
    reliability,
    score,
)
from k400tiny_lib.evaluation.predictions import probabilities_of, table_of_probabilities
from tests.helpers.evaluation import random_table


def test_scikit_learn_recomputes_every_score_from_predictions_csv() -> None:
    table = random_table()
    scores = score(table, "test")
    csv = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    p = csv.filter(like="prob_").to_numpy()
    y, labels = csv["target"], np.arange(p.shape[1])
    expected = {
        "test_loss": sk.log_loss(y, p, labels=labels),
        "test_acc1": 100 * sk.accuracy_score(y, p.argmax(1)),
        "test_acc5": 100 * sk.top_k_accuracy_score(y, p, k=5, labels=labels),
        "test_clip_acc1": 100 * sk.accuracy_score(y, csv["clip_predicted"]),
        "test_mean_class_acc": 100 * sk.balanced_accuracy_score(y, p.argmax(1)),
        "test_ece": ece_by_definition(p, y.to_numpy()),
    }
    for name, value in expected.items():
        # The table is text in between, with all digits; ECE is computed in float32.
        assert scores[name] == pytest.approx(value, rel=1e-6), name
    for name, correct in (("acc1", p.argmax(1) == y), ("clip_acc1", csv["clip_predicted"] == y)):
        low, high = bootstrap_by_hand(correct, csv["group"])
        # Percentiles of 2000 resamples: their standard error is 0.4 points each, and a level of
        # 90 % would move them by 1.9.
        assert scores[f"test_{name}_ci_low"] == pytest.approx(100 * low, abs=1.4), name
        assert scores[f"test_{name}_ci_high"] == pytest.approx(100 * high, abs=1.4), name


def bootstrap_by_hand(values: pd.Series, groups: pd.Series) -> tuple[float, float]:
    """Draw sources with replacement, pool all clips of those drawn, take the 2.5 % tails."""
    rng = np.random.default_rng(1)
    by_source = [part.to_numpy(float) for _, part in values.groupby(groups)]
    means = [
        np.concatenate(
            [by_source[n] for n in rng.integers(0, len(by_source), len(by_source))]
        ).mean()
        for _ in range(2000)
    ]
    return tuple(np.quantile(means, [0.025, 0.975]))


def ece_by_definition(p: np.ndarray, y: np.ndarray) -> float:
    """Guo et al. 2017, equation 3: bins ((m-1)/M, m/M]."""
    confidence, right = p.max(1), p.argmax(1) == y
    error = 0.0
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return error


def test_top_5_of_four_classes_is_left_out() -> None:
    assert "val_acc5" not in score(random_table(num_classes=4), "val")
    assert score(random_table(num_classes=5), "val")["val_acc5"] == 100


def test_classes_that_do_not_occur_can_be_left_out_of_the_choice() -> None:
    table = random_table(num_classes=9)
    some = table[table["target"] < 6].reset_index(drop=True)
    scores = score(some, "test")
    among = probabilities_of(some)[:, :6]
    assert scores["test_present_acc1"] == 100 * (among.argmax(1) == some["target"]).mean()
    assert scores["test_present_acc1"] >= scores["test_acc1"]
    assert scores["test_present_acc5"] >= scores["test_acc5"]
    assert "test_present_acc1" not in score(table, "test")  # all occur


def test_two_classes_have_scores_too() -> None:
    table = random_table(num_classes=2)
    assert score(table, "test")["test_acc1"] == 100 * (table["predicted"] == table["target"]).mean()


def test_the_intervals_contain_the_truth_in_95_of_100_data_sets() -> None:
    rng = np.random.default_rng(0)
    truth, hits = 0.7, 0
    for _ in range(400):
        # 60 sources of 1 to 5 clips; a source is easy or difficult for all of its clips.
        sizes = rng.integers(1, 6, 60)
        difficulty = rng.beta(7, 3, 60)  # with mean 0.7
        groups = pd.Series(np.repeat(np.arange(60), sizes))
        correct = pd.Series(rng.random(len(groups)) < np.repeat(difficulty, sizes), dtype=float)
        low, high = cluster_bootstrap(correct, groups)
        hits += low <= truth <= high
    # 380 expected, with a standard error of 4.4; percentile intervals are a little too narrow.
    assert 366 <= hits <= 394


def test_copies_of_a_clip_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    per_source = pd.Series(np.repeat(rng.random(30) < 0.6, 10))
    sources = pd.Series(np.repeat([f"s{n}" for n in range(30)], 10))
    clips = pd.Series([f"c{n}" for n in range(300)])
    low, high = accuracy_interval(per_source, sources)
    narrow_low, narrow_high = accuracy_interval(per_source, clips)
    # Ten copies of each source carry no more than one: sqrt(10) times as wide.
    assert (high - low) / (narrow_high - narrow_low) == pytest.approx(math.sqrt(10), rel=0.15)


@pytest.mark.parametrize("right", [True, False])
def test_perfect_agreement_is_not_perfect_certainty(right: bool) -> None:
    low, high = accuracy_interval(pd.Series([right] * 12), pd.Series(list("aabbccddeeff")))
    assert (low, high) == pytest.approx(
        (0.025 ** (1 / 6), 1) if right else (0, 1 - 0.025 ** (1 / 6))  # Clopper-Pearson, 6 sources
    )


@given(st.integers(0, 2**32 - 1))
def test_the_reliability_diagram_shows_the_calibration_error(seed: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(4, 0.4), size=40)
    y = rng.integers(0, 4, 40)
    bins = reliability(p, y).dropna()
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    # torchmetrics computes in float32.
    assert (gaps * bins["clips"]).sum() / 40 == pytest.approx(calibration_error(p, y), abs=1e-5)


def test_per_class_numbers_are_scikit_learns() -> None:
    table = random_table()
    names = [f"class {n}" for n in range(7)]
    ours = per_class(table, names).set_index("label")
    theirs = sk.classification_report(
        table["target"], table["predicted"], target_names=names, output_dict=True
    )
    for name in names:
        expected = [theirs[name][key] for key in ("precision", "recall", "f1-score", "support")]
        assert list(ours.loc[name, ["precision", "recall", "f1", "support"]]) == pytest.approx(
            expected
        )


def test_confused_pairs_are_the_matrix_off_its_diagonal_most_frequent_first() -> None:
    table = random_table()
    matrix = sk.confusion_matrix(table["target"], table["predicted"])
    pairs = confused_pairs(table, [str(n) for n in range(7)])
    assert pairs["clips"].is_monotonic_decreasing
    assert pairs["clips"].sum() == matrix.sum() - matrix.trace()
    for pair in pairs.itertuples():
        assert matrix[int(pair.true), int(pair.predicted)] == pair.clips
        assert pair.share == pytest.approx(pair.clips / matrix[int(pair.true)].sum())


def test_a_class_without_clips_has_no_recall_and_does_not_count() -> None:
    targets, predicted = np.array([0, 0, 1]), np.array([0, 2, 1])
    classes = per_class(pd.DataFrame({"target": targets, "predicted": predicted}), list("abc"))
    assert classes["recall"].tolist()[:2] == [0.5, 1.0]
    assert classes.loc[2, ["recall", "f1"]].isna().all()
    assert classes.loc[2, "support"] == 0
    clips = [Clip(f"v{i}", (0, 3), int(t), f"s{i}") for i, t in enumerate(targets)]
    table = table_of_probabilities(clips, np.eye(3)[predicted] * 0.9 + 0.1 / 3)
    assert score(table, "test")["test_mean_class_acc"] == 75  # of a and b
