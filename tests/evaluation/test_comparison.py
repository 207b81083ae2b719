"""Comparing two models on the same clips."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.comparison import (
    OtherModel,
    align,
    compare_predictions,
    predict_frames,
)
from tests.helpers.evaluation import clips_of, random_table, write_annotated_clips


def test_the_difference_and_its_interval_are_of_the_same_clips_in_any_order() -> None:
    table, other = random_table(seed=0), random_table(seed=1)
    clips = clips_of(table)
    aligned = align(other, clips)
    comparison = compare_predictions(table, table["predicted"], aligned["predicted"])
    pd.testing.assert_frame_equal(align(other.sample(frac=1, random_state=0), clips), aligned)
    rates = [100 * (t["predicted"] == t["target"]).mean() for t in (table, other)]
    assert comparison.difference == pytest.approx(rates[0] - rates[1])
    assert comparison.low < comparison.difference < comparison.high


def test_the_mcnemar_test_is_the_exact_one() -> None:
    table = pd.DataFrame({"target": 1, "group": np.arange(31).astype(str)})
    this, other = pd.Series([1] * 9 + [0] * 2 + [1] * 20), pd.Series([0] * 9 + [1] * 2 + [1] * 20)
    comparison = compare_predictions(table, this, other)
    assert (comparison.only_this, comparison.only_other) == (9, 2)
    # Twice the tail of a fair coin: P(at most 2 of 11).
    expected = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert comparison.mcnemar_p == pytest.approx(expected)


def test_a_model_does_not_differ_from_itself() -> None:
    table = random_table()
    comparison = compare_predictions(table, table["predicted"], table["predicted"])
    assert (comparison.difference, comparison.low, comparison.high) == (0, 0, 0)
    assert comparison.mcnemar_p == 1


def test_other_clips_and_other_targets_are_refused_in_one_line() -> None:
    table = random_table()
    clips = clips_of(table)
    with pytest.raises(UserError, match=r"^compare_with: .*other clips \(59 of 60 in common.*v000"):
        align(table.iloc[1:], clips)
    with pytest.raises(UserError, match=r"^compare_with: .*a clip that occurs twice"):
        align(pd.concat([table, table.iloc[:1]]), clips)
    with pytest.raises(UserError, match=r"^compare_with: its targets differ"):
        align(table.assign(target=0), clips)
    with pytest.raises(UserError, match=r"^compare_with: .*no column 'predicted'"):
        align(table[["video", "target"]], clips)


@dataclass
class Recorder:
    """A classifier that always answers 1 and keeps the frames that it was given."""

    class_names: list[str]
    clip_len: int = 6
    frames: list[np.ndarray] = field(default_factory=list)

    def predict(self, frames: np.ndarray) -> np.ndarray:
        self.frames.append(frames)
        return np.array([[0.2, 0.5, 0.3]], np.float32)


def test_a_registered_model_sees_the_frames_of_the_same_views(tmp_path: Path) -> None:
    data_path, _, annotations = write_annotated_clips(tmp_path, num_clips=3)
    config = Config(data_path=str(data_path))
    model = Recorder(list(annotations.categories))
    clips = annotations.splits["test"]
    table = OtherModel("it", model).predictions(clips, annotations, config)
    assert list(table["predicted"]) == [1, 1, 1]
    expected = read_frames(data_path / clips[0].video, range(6)).numpy()
    assert np.array_equal(model.frames[0][0], expected)
    stranger = Recorder(model.class_names[:1])
    with pytest.raises(UserError, match=r"^compare_with: the model does not know 'growing'"):
        predict_frames(stranger, clips, annotations, config)
    with pytest.raises(UserError, match=r"^num_crops: "):
        predict_frames(model, clips, annotations, config.replace(num_crops=3))
