"""Temperature scaling undoes a known overconfidence and reports whether it helps."""

import numpy as np
import pytest
import torch

from k400tiny_lib.evaluation.calibration import calibrate, fit_temperature, scale
from k400tiny_lib.evaluation.metrics import calibration_error
from k400tiny_lib.evaluation.predictions import probabilities_of, table_of_probabilities
from tests.helpers.evaluation import clips_of, random_table


def overconfident_clips(seed: int, sharpness: float, num_clips: int = 3000):
    """Labels drawn from the probabilities, which are then sharpened to be overconfident."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=1.5, size=(num_clips, 5))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    targets = np.array([rng.choice(5, p=row) for row in p])
    table = random_table(num_clips, 5).assign(target=targets)
    sharp = torch.tensor(logits * sharpness).softmax(1).numpy()
    return table_of_probabilities(clips_of(table), sharp)


def test_scaling_one_view_is_the_softmax_of_its_logits_over_the_temperature() -> None:
    logits = torch.randn(8, 5, dtype=torch.float64)
    expected = (logits / 1.7).softmax(1)
    np.testing.assert_allclose(scale(logits.softmax(1).numpy(), 1.7), expected, rtol=1e-12)


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_known_overconfidence(sharpness: float) -> None:
    table = overconfident_clips(0, sharpness)
    temperature = fit_temperature(probabilities_of(table), table["target"].to_numpy())
    assert temperature == pytest.approx(sharpness, rel=0.1)  # 3000 drawn labels


def test_an_overconfident_model_is_calibrated_and_keeps_its_labels() -> None:
    fitting, table = overconfident_clips(1, 3.0), overconfident_clips(2, 3.0)
    calibration = calibrate(fitting, table)
    p, targets = probabilities_of(table), table["target"].to_numpy()
    scaled = scale(p, calibration.temperature)
    assert calibration.applied
    assert calibration.ece_before == calibration_error(p, targets)
    assert calibration.ece_after == calibration_error(scaled, targets) < calibration.ece_before / 3
    assert calibration.loss_after < calibration.loss_before
    assert np.array_equal(scaled.argmax(1), p.argmax(1))


def test_a_temperature_that_does_harm_is_not_applied() -> None:
    # Validation clips that are all correct at a low confidence call for a sharpening that makes the
    # evaluated clips overconfident.
    easy = overconfident_clips(3, 0.5, num_clips=60)
    easy = easy.assign(target=easy["predicted"])
    hard = overconfident_clips(4, 1.0)
    calibration = calibrate(easy, hard)
    assert calibration.temperature < 0.5
    assert not calibration.applied
    assert calibration.ece_after >= calibration.ece_before
    assert "does not lower" in calibration.reason


def test_probabilities_that_underflowed_do_no_harm() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert np.isfinite(scale(p, 2.0)).all()
    assert np.isfinite(fit_temperature(p, np.array([0, 1, 1])))
