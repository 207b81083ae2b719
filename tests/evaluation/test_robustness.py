"""What is done to the frames is what its name says."""

import cv2
import numpy as np
import pandas as pd
import torch

from k400tiny_lib.evaluation.robustness import (
    CLEAN,
    CONDITIONS,
    MAX_CLIPS,
    Probes,
    blur,
    brighten,
    hold,
    probe_positions,
    probe_table,
    reverse,
    robustness,
)
from tests.helpers.evaluation import random_table

CLIP = torch.randint(0, 256, (3, 8, 24, 24), generator=torch.Generator().manual_seed(0)).byte()


def test_every_condition_keeps_shape_and_type_and_changes_something() -> None:
    for name, change in CONDITIONS.items():
        changed = change(CLIP)
        assert (changed.shape, changed.dtype) == (CLIP.shape, CLIP.dtype), name
        assert not torch.equal(changed, CLIP), name


def test_reversing_twice_is_nothing_and_once_is_time() -> None:
    assert torch.equal(reverse(reverse(CLIP)), CLIP)
    assert torch.equal(reverse(CLIP)[:, 0], CLIP[:, -1])


def test_dropped_frames_show_the_one_before() -> None:
    assert torch.equal(hold(CLIP, 4), CLIP[:, [0, 0, 0, 0, 4, 4, 4, 4]])


def test_light_is_multiplied() -> None:
    assert torch.equal(brighten(CLIP, 0.5), (CLIP.float() * 0.5).byte())


def test_blur_is_opencvs_gaussian() -> None:
    ours = blur(CLIP, 1.0)[:, 0].permute(1, 2, 0).numpy().astype(int)
    frame = CLIP[:, 0].permute(1, 2, 0).numpy()
    theirs = cv2.GaussianBlur(frame, (7, 7), 1.0, borderType=cv2.BORDER_REFLECT_101)
    assert np.abs(ours - theirs).max() <= 1  # OpenCV computes in fixed point


def test_conditions_are_compared_with_the_same_clips_as_recorded() -> None:
    table = random_table(num_clips=100)
    positions = np.array(probe_positions(len(table)))
    assert len(positions) == len(set(positions)) == MAX_CLIPS
    right = np.tile(table["target"].to_numpy()[positions, None], (1, len(CONDITIONS)))
    halves = [Probes(positions[part::2], right[part::2]) for part in (0, 1)]
    probes = probe_table(table, halves)
    pd.testing.assert_series_equal(
        probes[CLEAN],
        table["clip_predicted"].iloc[positions].reset_index(drop=True),
        check_names=False,
    )
    for found in robustness(probes).values():
        assert found.acc1 == 100
        assert found.other_acc1 == 100 * (probes[CLEAN] == probes["target"]).mean()
