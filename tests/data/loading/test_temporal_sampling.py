"""Which frames: against the formulas that the field uses."""

import numpy as np
import pytest
import torch
from pytorchvideo.data.clip_sampling import UniformClipSampler

from k400tiny_lib.data.loading.augmentation import jittered_indices
from k400tiny_lib.data.loading.pytorchvideo_transforms import uniform_temporal_subsample
from k400tiny_lib.media.sampling import uniform_indices, view_indices

# clip_len 1, below, equal to and above the number of frames, and a segment of one frame.
CASES = [(40, 1), (40, 16), (40, 40), (40, 64), (16, 8), (3, 4), (1, 1), (1, 5), (300, 16)]


@pytest.mark.parametrize(("num_frames", "clip_len"), CASES)
def test_uniform_indices_are_pytorchvideos(num_frames: int, clip_len: int) -> None:
    frames = torch.arange(num_frames)
    expected = uniform_temporal_subsample(frames, clip_len, temporal_dim=0)
    np.testing.assert_array_equal(uniform_indices(num_frames, clip_len), expected)


@pytest.mark.parametrize(("num_frames", "clip_len"), CASES)
def test_uniform_indices_are_numpys_linspace_rounded_down(num_frames: int, clip_len: int) -> None:
    exact = np.linspace(0, num_frames - 1, clip_len)
    actual = uniform_indices(num_frames, clip_len)
    # float32 may land just below a whole number that float64 hits: one frame, there only.
    whole = np.isclose(exact, exact.round())
    np.testing.assert_array_equal(actual[~whole], np.floor(exact[~whole]))
    assert (np.abs(actual[whole] - exact[whole].round()) <= 1).all()


@pytest.mark.parametrize("num_frames", [2, 16, 40, 300])
def test_first_and_last_frame_are_taken_and_all_of_them_where_the_clip_is_as_long(
    num_frames: int,
) -> None:
    assert uniform_indices(num_frames, 2).tolist() == [0, num_frames - 1]
    assert uniform_indices(num_frames, num_frames).tolist() == list(range(num_frames))
    assert uniform_indices(num_frames, 1).tolist() == [0]


def test_a_clip_longer_than_the_segment_repeats_frames_and_skips_none() -> None:
    assert set(uniform_indices(5, 12).tolist()) == set(range(5))
    generator = torch.Generator().manual_seed(0)
    assert set(jittered_indices(5, 12, generator).tolist()) == set(range(5))


@pytest.mark.parametrize(("num_frames", "clip_len"), CASES)
def test_jitter_takes_one_frame_of_each_equal_part(num_frames: int, clip_len: int) -> None:
    edges = np.linspace(0, num_frames, clip_len + 1)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        indices = jittered_indices(num_frames, clip_len, generator).numpy()
        assert (indices >= np.floor(edges[:-1])).all()
        assert (indices <= np.minimum(np.ceil(edges[1:]), num_frames - 1)).all()


def test_jitter_reaches_every_frame() -> None:
    generator = torch.Generator().manual_seed(0)
    seen = {index for _ in range(200) for index in jittered_indices(40, 16, generator).tolist()}
    assert seen == set(range(40))


@pytest.mark.parametrize(("num_frames", "clip_len"), CASES)
@pytest.mark.parametrize("num_views", [1, 2, 3, 5])
def test_views_stay_in_the_segment_and_move_forward(
    num_frames: int, clip_len: int, num_views: int
) -> None:
    views = view_indices(num_frames, clip_len, num_views)
    assert views.shape == (num_views, clip_len)
    assert views.min() >= 0
    assert views.max() < num_frames
    assert (np.diff(views, axis=0) >= 0).all()
    assert (np.diff(views, axis=1) >= 0).all()


@pytest.mark.parametrize("num_views", [1, 3, 5])
def test_the_middle_view_is_the_uniform_one(num_views: int) -> None:
    views = view_indices(40, 16, num_views)
    np.testing.assert_array_equal(views[num_views // 2], uniform_indices(40, 16))


def test_views_spread_as_pytorchvideos_uniform_clip_sampler_spreads_clips() -> None:
    """Clips of one stride each, at uniform starts: their number is that of distinct views."""
    num_frames, clip_len = 48, 16
    stride = num_frames // clip_len
    sampler = UniformClipSampler(clip_duration=1)
    starts, info = [], None
    while info is None or not info.is_last_clip:
        info = sampler(info.clip_end_sec if info else 0, stride, {})
        starts.append(int(info.clip_start_sec))
    views = view_indices(num_frames, clip_len, num_views=stride)
    middle = views[:, clip_len // 2]
    assert (middle - middle[0]).tolist() == starts


@pytest.mark.parametrize(("num_frames", "clip_len"), [(0, 4), (4, 0)])
def test_nothing_is_sampled_from_nothing(num_frames: int, clip_len: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        uniform_indices(num_frames, clip_len)
