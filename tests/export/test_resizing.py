"""Pixels of the graph are those of torchvision, and cost what the crop needs."""

import numpy as np
import pytest
import torch

from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.resizing import center_offset, preprocess, window
from k400tiny_lib.models.loaded import Geometry

T = 2
SIZES = [
    *[(336, 336), (240, 320), (320, 240), (1080, 1920), (2160, 3840), (129, 257), (1079, 607)],
    *[(128, 128), (111, 113), (127, 130), (20, 17), (1, 1), (3, 2)],  # smaller than the crop
    *[(16, 1600), (1600, 16), (1, 200), (16000, 16)],
]
GEOMETRIES = [
    Geometry(T, (128,), 112),
    Geometry(T, (37,), 32),
    Geometry(T, (112,), 112),
    Geometry(T, (182,), 160, antialias=False),
    Geometry(T, (128, 171), 112),
    Geometry(T, (171, 128), 112, antialias=False),
]
# 30 times their short side; torchvision resizes the whole of it.
_LONGEST = 4000


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_torchvisions(size: tuple[int, int], geometry: Geometry) -> None:
    """Of whole gray levels, on noise.

    Both compute in float32, so a sum within 0.001 of a half may be rounded to either side: few
    pixels, and by one level. Sizes whose scale has few binary digits have more sums of just a half.
    """
    if len(geometry.resize) == 1 and max(size) * geometry.resize[0] > 600_000 * min(size):
        pytest.skip("torchvision needs gigabytes for it")
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (T, *size, 3), dtype=torch.uint8, generator=generator)
    expected = crop_views(frames, geometry, 1)[0].transpose(0, 1)
    actual = preprocess(frames[None], geometry)
    difference = (actual - expected).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < (2e-3 if geometry.antialias else 6e-3)


@pytest.mark.parametrize("geometry", GEOMETRIES[:2], ids=str)
@pytest.mark.parametrize("size", [(336, 336), (1080, 1920), (90, 120), (16, 300)], ids=str)
def test_pixels_that_change_slowly_are_torchvisions(
    size: tuple[int, int], geometry: Geometry
) -> None:
    """Before rounding, both are the same within 0.002 gray levels."""
    rows, columns = (torch.linspace(0, 1, side) for side in size)
    frames = (255 * rows[:, None] * columns).to(torch.uint8).expand(3, T, -1, -1)
    frames = frames.permute(1, 2, 3, 0).contiguous()
    expected = crop_views(frames, geometry, 1)[0].transpose(0, 1).float()
    difference = (preprocess(frames[None], geometry) - expected).abs()
    assert (difference > 0).float().mean() < 1e-3


def test_smoothing_is_what_the_geometry_says() -> None:
    frames = torch.randint(0, 256, (1, T, 336, 336, 3), dtype=torch.uint8)
    smooth, sharp = (preprocess(frames, Geometry(T, (128,), 112, on)) for on in (True, False))
    assert (smooth - sharp).abs().mean() > 5


@pytest.mark.parametrize("size", range(112, 260))
def test_the_crop_starts_where_torchvisions_does(size: int) -> None:
    assert center_offset(size, 112) == round((size - 112) / 2.0)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_window_is_no_larger_than_the_crop_needs(antialias: bool) -> None:
    """So that no shape of the frames makes the graph need much memory."""
    for size in (1, 2, 17, 128, 336, 1920, 3840, 16000):
        for new_size in (112, 113, 128, 171, 2000, 128_000, 2_048_000):
            first, end = window(size, new_size, 112, antialias)
            scale = size / new_size
            assert 0 <= first < end <= size
            assert end - first <= 113 * scale + 2 * max(scale, 1) + 6


def test_every_pixel_that_counts_is_in_the_window() -> None:
    """Against the weights over the whole axis, in double precision."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        crop = int(rng.integers(1, 40))
        size, new_size = int(rng.integers(1, 500)), int(crop + rng.integers(0, 300))
        first, end = window(size, new_size, crop, True)
        scale = size / new_size
        centers = (np.arange(crop) + center_offset(new_size, crop) + 0.5) * scale
        away = np.abs(np.arange(size) + 0.5 - centers[:, None])
        [counting] = np.nonzero((away < max(scale, 1) - 1e-9).any(0))
        assert first <= counting.min() <= counting.max() < end
