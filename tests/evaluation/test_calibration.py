"""Temperature scaling undoes a known overconfidence, and makes nobody certain without proof."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator

from k400tiny_lib.evaluation.calibration import calibrate, doubt_of, fit_temperature, scale
from k400tiny_lib.evaluation.metrics import calibration_error
from k400tiny_lib.evaluation.predictions import probabilities_of, table_of_probabilities
from tests.helpers.evaluation import clips_of, random_table


def overconfident_clips(seed: int, sharpness: float, num_clips: int = 3000) -> pd.DataFrame:
    """Labels drawn from the probabilities, which are then sharpened to be overconfident."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(num_clips, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([rng.choice(5, p=row) for row in p])
    table = random_table(num_clips, 5).assign(target=targets)
    sharp = torch.tensor(logits * sharpness).softmax(1).numpy()
    return table_of_probabilities(clips_of(table), sharp)


def clips_with_mistakes(
    margin: float, num_clips: int = 64, wrong_sources: int = 0, clips_per_source: int = 2
) -> pd.DataFrame:
    """Clips of 8 classes that win by about a margin of logits; the first sources are mistaken."""
    rng = np.random.default_rng(0)
    table = random_table(num_clips, 8, clips_per_source)
    logits = rng.normal(scale=0.3, size=(num_clips, 8))
    winner = table["target"].to_numpy().copy()
    winner[: wrong_sources * clips_per_source : clips_per_source] += 1
    logits[np.arange(num_clips), winner % 8] += margin
    return table_of_probabilities(clips_of(table), torch.tensor(logits).softmax(1).numpy())


def test_scaling_one_view_is_the_softmax_of_its_logits_over_the_temperature() -> None:
    logits = torch.randn(8, 5, dtype=torch.float64)
    expected = (logits / 1.7).softmax(1)
    np.testing.assert_allclose(scale(logits.softmax(1).numpy(), 1.7), expected, rtol=1e-12)


@pytest.mark.parametrize("margin", [1.0, 3.0, 30.0])
@pytest.mark.parametrize("wrong_sources", [0, 3])
def test_the_fit_minimizes_cross_entropy_with_platts_targets(
    margin: float, wrong_sources: int
) -> None:
    table = clips_with_mistakes(margin, wrong_sources=wrong_sources)
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    num_classes, num_sources = 8, table["group"].nunique()
    logits, labels = torch.tensor(probabilities).log(), torch.tensor(targets)
    # PyTorch spreads the smoothing over all classes, Platt's targets over the others.
    smoothing = num_classes / (num_classes - 1) / (num_sources + 2)
    scale_of = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([scale_of], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        scaled = logits / scale_of.exp()
        loss = torch.nn.functional.cross_entropy(scaled, labels, label_smoothing=smoothing)
        loss.backward()
        return loss

    optimizer.step(closure)
    fitted = fit_temperature(probabilities, targets, doubt_of(num_sources))
    assert fitted == pytest.approx(scale_of.exp().item(), rel=1e-3)


class Logits(ClassifierMixin, BaseEstimator):
    """Gives the logits that it is asked about."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "Logits":
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, x: np.ndarray) -> np.ndarray:
        return x

    def predict(self, x: np.ndarray) -> np.ndarray:
        return self.classes_[x.argmax(1)]


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_with_many_clips_the_temperature_is_that_of_scikit_learn_and_of_the_truth(
    sharpness: float,
) -> None:
    table = overconfident_clips(0, sharpness)
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    temperature = fit_temperature(probabilities, targets, doubt_of(table["group"].nunique()))
    logits = np.log(probabilities)
    estimator = FrozenEstimator(Logits().fit(logits, targets))
    theirs = CalibratedClassifierCV(estimator, method="temperature").fit(logits, targets)
    [calibrated] = theirs.calibrated_classifiers_
    assert temperature == pytest.approx(1 / calibrated.calibrators[0].beta_, rel=0.02)
    assert temperature == pytest.approx(sharpness, rel=0.1)  # 3000 drawn labels


def test_an_overconfident_model_is_calibrated_and_keeps_its_labels() -> None:
    fitting, table = overconfident_clips(1, 3.0), overconfident_clips(2, 3.0)
    calibration = calibrate(fitting, table)
    p, targets = probabilities_of(table), table["target"].to_numpy()
    scaled = scale(p, calibration.temperature)
    assert calibration.applied
    assert calibration.temperature == calibration.fitted
    assert calibration.ece_before == calibration_error(p, targets)
    assert calibration.ece_after == calibration_error(scaled, targets) < calibration.ece_before / 3
    assert calibration.loss_after < calibration.loss_before
    assert np.array_equal(scaled.argmax(1), p.argmax(1))
    assert f"temperature {calibration.temperature:.3f}, fitted on 3000" in calibration.statement


@pytest.mark.parametrize("margin", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("wrong_sources", [0, 1])
def test_without_mistakes_that_bound_it_nothing_is_made_more_certain(
    margin: float, wrong_sources: int
) -> None:
    fitting = clips_with_mistakes(margin, wrong_sources=wrong_sources)
    calibration = calibrate(fitting, fitting)
    assert calibration.fitted is not None
    assert calibration.fitted < 1
    assert (calibration.temperature, calibration.applied) == (1.0, False)
    assert calibration.errors == wrong_sources
    assert "has a mistake that could bound it" in calibration.statement


def test_mistakes_of_several_sources_bound_a_sharpening() -> None:
    fitting = clips_with_mistakes(2.0, wrong_sources=6)
    calibration = calibrate(fitting, fitting)
    assert calibration.applied
    assert 0.3 < calibration.temperature < 1
    confidence = scale(probabilities_of(fitting), calibration.temperature).max(1)
    accuracy = (fitting["predicted"] == fitting["target"]).mean()
    assert probabilities_of(fitting).max(1).mean() < confidence.mean() < accuracy


@pytest.mark.parametrize("num_clips", [8, 64, 640])
def test_a_model_that_is_certain_and_right_is_softened_to_what_so_few_clips_can_show(
    num_clips: int,
) -> None:
    fitting = clips_with_mistakes(30.0, num_clips)
    calibration = calibrate(fitting, fitting)
    assert calibration.applied
    confidence = scale(probabilities_of(fitting), calibration.temperature).max(1)
    sources = num_clips / 2
    assert confidence.mean() == pytest.approx((sources + 1) / (sources + 2), abs=0.01)


def test_the_evaluated_clips_have_no_say_in_the_temperature() -> None:
    fitting = overconfident_clips(1, 3.0, 300)
    # Of the second table, the same temperature makes the calibration error worse.
    helped, harmed = overconfident_clips(2, 3.0), overconfident_clips(3, 0.5)
    first, second = calibrate(fitting, helped), calibrate(fitting, harmed)
    assert second.ece_after > second.ece_before
    assert first.applied
    for name in ("temperature", "applied", "reason", "fitted", "fitted_on", "errors"):
        assert getattr(first, name) == getattr(second, name)


@pytest.mark.parametrize("seed", [3, 7])
def test_a_temperature_that_does_not_help_held_out_sources_is_not_applied(seed: int) -> None:
    # Few clips with the right confidence: what is fitted to their chance helps no others.
    fitting = overconfident_clips(seed, 1.0, 45)
    calibration = calibrate(fitting, fitting)
    assert calibration.fitted is not None
    assert fitting.query("predicted != target")["group"].nunique() > 2
    assert (calibration.temperature, calibration.applied) == (1.0, False)
    assert "was not fitted on" in calibration.statement
    # A single source cannot be held out.
    alone = overconfident_clips(1, 3.0, 60).assign(group="one source")
    assert not calibrate(alone, fitting).applied


def test_a_fit_without_an_optimum_in_range_is_refused() -> None:
    table = random_table()
    worst = table.assign(target=probabilities_of(table).argmin(1))  # softer is always better
    calibration = calibrate(worst, table)
    assert calibration.fitted is None
    assert (calibration.temperature, calibration.applied) == (1.0, False)
    assert "no temperature between 0.05 and 20" in calibration.statement


@given(st.integers(2, 9), st.integers(1, 60), st.floats(0, 40), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_whatever_the_clips_only_mistakes_of_two_sources_sharpen(
    num_classes: int, num_clips: int, margin: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(num_clips, num_classes)) * rng.uniform(0, 3)
    targets = rng.integers(num_classes, size=num_clips)
    logits[np.arange(num_clips), targets] += margin
    table = random_table(num_clips, num_classes, int(rng.integers(1, 4))).assign(target=targets)
    p = torch.tensor(logits).softmax(1).numpy()
    table = table_of_probabilities(clips_of(table), p)
    calibration = calibrate(table, table)
    assert 0.05 < calibration.temperature < 20
    wrong = table[table["predicted"] != table["target"]]
    assert calibration.temperature >= 1 or wrong["group"].nunique() >= 2
    assert np.isfinite(scale(p, calibration.temperature)).all()


def test_probabilities_that_underflowed_do_no_harm() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(scale(p, 2.0)).all()
    fitted = fit_temperature(p, np.array([0, 1, 1]), doubt_of(3))
    assert fitted is None or np.isfinite(fitted)
