"""The confidence threshold keeps the right answers that it promises, and promises no more."""

import numpy as np
import pytest

from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.evaluation.threshold import choose_threshold, lower_quantile, mark
from tests.helpers.evaluation import random_table


@pytest.mark.parametrize("num_clips", [19, 20, 39, 40, 64, 1000])
def test_with_one_clip_a_source_it_is_the_quantile_of_split_conformal_prediction(
    num_clips: int,
) -> None:
    rng = np.random.default_rng(num_clips)
    confidence = rng.random(num_clips)
    # The quantile of the scores at level ceil((n + 1) 0.95) / n, as Angelopoulos and Bates 2021
    # (arXiv:2107.07511) give it; the small number is for rounding.
    level = (np.ceil((num_clips + 1) * 0.95 - 1e-9) - 1e-6) / num_clips
    expected = -np.quantile(-confidence, level, method="inverted_cdf")
    groups = rng.permutation(num_clips).astype(object)
    assert lower_quantile(confidence, groups, 0.95) == expected


@pytest.mark.parametrize(("num_sources", "clips"), [(25, 1), (25, 8), (60, 4)])
def test_new_sources_reach_it_as_often_as_promised(num_sources: int, clips: int) -> None:
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(2000):  # clips of a source resemble one another
        source = rng.normal(size=(num_sources + 1, 1))
        confidence = 1 / (1 + np.exp(-source - 0.1 * rng.normal(size=(num_sources + 1, clips))))
        groups = np.repeat(np.arange(num_sources), clips).astype(object)
        threshold = lower_quantile(confidence[:-1].ravel(), groups, 0.95)
        kept.append((confidence[-1] >= threshold).mean())
    assert np.mean(kept) > 0.95 - 3 * np.std(kept) / np.sqrt(len(kept))


@pytest.mark.parametrize("clips", [1, 50])
def test_fewer_than_19_sources_promise_nothing_however_many_clips(clips: int) -> None:
    groups = np.repeat(np.arange(18), clips).astype(object)
    confidence = np.linspace(0.5, 1, len(groups))
    assert lower_quantile(confidence, groups, 0.95) == 0
    more = np.append(groups, 18)
    assert lower_quantile(np.append(confidence, 1), more, 0.95) == 0.5
    assert lower_quantile(np.empty(0), np.empty(0, object), 0.95) == 0


def test_too_few_sources_are_said_and_mark_nothing() -> None:
    threshold = choose_threshold(random_table(30), random_table(seed=1))  # 10 sources
    assert threshold.value == threshold.right.below == threshold.wrong.below == 0
    assert "takes 19 sources" in threshold.statement
    assert threshold.statement.startswith("There is no confidence threshold: ")


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_it_is_of_right_validation_answers_and_counted_on_the_other_table(
    temperature: float,
) -> None:
    fitting, table = random_table(300), random_table(200, seed=1)
    threshold = choose_threshold(fitting, table, temperature)
    confidence = scale(probabilities_of(fitting), temperature).max(1)
    right = fitting["predicted"] == fitting["target"]
    assert threshold.value in confidence[right]
    assert 0.95 <= (confidence[right] >= threshold.value).mean() < 0.99
    confidence = scale(probabilities_of(table), temperature).max(1)
    right = (table["predicted"] == table["target"]).to_numpy()
    assert (threshold.right.clips, threshold.wrong.clips) == (right.sum(), (~right).sum())
    assert threshold.scores() == pytest.approx(
        {
            "confidence_threshold": threshold.value,
            "right_kept": 100 * (confidence[right] >= threshold.value).mean(),
            "wrong_caught": 100 * (confidence[~right] < threshold.value).mean(),
        }
    )
    assert threshold.wrong.certain == (confidence[~right] > 0.99).mean()
    kept = (confidence[right] >= threshold.value).sum()
    assert f"Here {kept} of {right.sum()} right answers reach it" in str(threshold)


def test_shares_of_nothing_are_left_out() -> None:
    assert mark(np.empty(0), 0.5).below == 0
    table = random_table(60)
    sure = table.assign(target=table["predicted"])
    assert set(choose_threshold(sure, sure).scores()) == {"confidence_threshold", "right_kept"}
