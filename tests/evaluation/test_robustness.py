"""Each corruption changes the frames as its name says."""

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from k400tiny_lib.evaluation.shift.robustness import (
    CORRUPTIONS,
    MAX_CLIPS,
    UNCORRUPTED,
    blur,
    brighten,
    compare_corrupted,
    corrupted_positions,
    corruption_table,
    drop_frames,
    reverse,
)
from tests.helpers.evaluation import random_table

CLIP = torch.randint(0, 256, (3, 8, 24, 24), generator=torch.Generator().manual_seed(0)).byte()


def test_every_corruption_keeps_shape_and_type_and_changes_something() -> None:
    for name, corrupt in CORRUPTIONS.items():
        changed = corrupt(CLIP)
        assert (changed.shape, changed.dtype) == (CLIP.shape, CLIP.dtype), name
        assert not torch.equal(changed, CLIP), name


def test_reversing_twice_is_nothing_and_once_is_time() -> None:
    assert torch.equal(reverse(reverse(CLIP)), CLIP)
    assert torch.equal(reverse(CLIP)[:, 0], CLIP[:, -1])


def test_dropped_frames_show_the_one_before() -> None:
    assert torch.equal(drop_frames(CLIP, 4), CLIP[:, [0, 0, 0, 0, 4, 4, 4, 4]])


def test_brightness_is_multiplied() -> None:
    assert torch.equal(brighten(CLIP, 0.5), (CLIP.float() * 0.5).byte())


def test_blur_is_opencvs_gaussian() -> None:
    ours = blur(CLIP, 1.0)[:, 0].permute(1, 2, 0).numpy().astype(int)
    frame = CLIP[:, 0].permute(1, 2, 0).numpy()
    theirs = cv2.GaussianBlur(frame, (7, 7), 1.0, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(ours - theirs).max() <= 1  # OpenCV computes in fixed point


def test_corruptions_are_compared_with_the_same_clips_as_recorded() -> None:
    table = random_table(num_clips=100)
    positions = np.array(corrupted_positions(len(table)))
    assert len(positions) == len(set(positions)) == MAX_CLIPS
    targets = table["target"].to_numpy()[positions]
    correct = pd.DataFrame(dict.fromkeys(CORRUPTIONS, targets), index=positions)
    corrupted = corruption_table(table, [correct.iloc[1::2], correct.iloc[::2]])
    recorded = table.iloc[positions].reset_index(drop=True)
    assert list(corrupted["video"]) == list(recorded["video"])
    assert list(corrupted[UNCORRUPTED]) == list(recorded["clip_predicted"])
    acc1 = 100 * (recorded["clip_predicted"] == recorded["target"]).mean()
    for comparison in compare_corrupted(corrupted).values():
        assert (comparison.acc1, comparison.other_acc1) == (100, pytest.approx(acc1))
