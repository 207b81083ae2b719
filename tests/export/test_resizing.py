"""Pixels of the graph are those of torchvision, and cost what the crop needs."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.resizing import Axis, center_offset, preprocess, resize_and_crop
from k400tiny_lib.models.loaded import Geometry

SIZES = [
    *[(336, 336), (240, 320), (320, 240), (1080, 1920), (129, 257), (1079, 607)],
    *[(128, 128), (111, 113), (127, 130), (20, 17), (1, 1), (3, 2)],  # smaller than the crop
    *[(16, 900), (900, 16), (1, 50), (8, 1600)],
]
GEOMETRIES = [
    Geometry(1, (128,), 112),
    Geometry(1, (37,), 32),
    Geometry(1, (112,), 112),
    Geometry(1, (182,), 160, antialias=False),
    Geometry(1, (128, 171), 112),
    Geometry(1, (171, 128), 112, antialias=False),
]
# Gray levels. Sums of products in float32; in float32 PyTorch also rounds the centers of pixels,
# which moves an edge between black and white by more in pictures of 1000 pixels and more.
CLOSE, CLOSE_IN_FLOAT32 = 0.002, 0.05


def noise(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (1, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_are_torchvisions(size: tuple[int, int], geometry: Geometry) -> None:
    """Close before rounding; after it too, but where a sum lies on the edge of two gray levels.

    That is one pixel in a thousand. A sum of just a half goes either way: those are every hundredth
    pixel of noise at a scale of few binary digits.
    """
    frames = noise(*size)
    new_size = F.resize(torch.zeros((3, *size)), list(geometry.resize)).shape[-2:]
    images = frames.permute(0, 3, 1, 2).double()
    resized = interpolate(images, new_size, mode="bilinear", antialias=geometry.antialias)
    exact = F.center_crop(resized, [geometry.crop_size] * 2)
    assert (resize_and_crop(frames[None], geometry) - exact).abs().max() < CLOSE
    expected = crop_views(frames, geometry, 1)[0].transpose(0, 1)
    differ = preprocess(frames[None], geometry) != expected
    from_the_edge = (exact - exact.floor() - 0.5).abs()
    assert not (differ & (from_the_edge > CLOSE_IN_FLOAT32)).any()
    assert (differ & (from_the_edge > 1e-9)).float().mean() < 5e-3


@pytest.mark.parametrize("size", [(2160, 3840), (16_000, 16), (2, 20_000)], ids=str)
def test_huge_and_thin_frames_are_resized_right(size: tuple[int, int]) -> None:
    """Against Pillow's weights in double precision, of the crop alone: no other tool does less."""
    geometry = GEOMETRIES[0]
    frames = noise(*size)
    short = min(size)
    new_size = tuple(int(128 * side / short) for side in size)
    matrices = [triangle_weights(a, b, 112) for a, b in zip(size, new_size, strict=True)]
    exact = np.einsum("ih,hwc,jw->cij", matrices[0], frames[0].double(), matrices[1], optimize=True)
    actual = resize_and_crop(frames[None], geometry)[0]
    np.testing.assert_allclose(actual, exact, atol=CLOSE)


def triangle_weights(size: int, new_size: int, crop: int) -> np.ndarray[Any, Any]:
    """(crop, size), of the rows of a center crop, as Pillow's Resample.c defines them."""
    scale = size / new_size
    first = round((new_size - crop) / 2)
    centers = (np.arange(crop) + first + 0.5) * scale
    away = np.abs(np.arange(size) + 0.5 - centers[:, None])
    weights = np.maximum(0, 1 - away / max(scale, 1))
    return weights / weights.sum(1, keepdims=True)


def test_smoothing_is_what_the_geometry_says() -> None:
    frames = noise(336, 336)[None]
    smooth, sharp = (preprocess(frames, Geometry(1, (128,), 112, on)) for on in (True, False))
    assert (smooth - sharp).abs().mean() > 5


@pytest.mark.parametrize("size", range(112, 260))
def test_the_crop_starts_where_torchvisions_does(size: int) -> None:
    assert center_offset(size, 112) == round((size - 112) / 2.0)


@pytest.mark.parametrize("antialias", [True, False])
def test_the_window_is_no_larger_than_the_crop_needs(antialias: bool) -> None:
    """So that no shape of the frames makes the graph need much memory."""
    for size in (1, 2, 17, 128, 336, 1920, 3840, 16000):
        for new_size in (112, 113, 128, 171, 2000, 128_000, 2_048_000):
            first, end = Axis(size, new_size, 112, antialias).window(0, 112)
            scale = size / new_size
            assert 0 <= first < end <= size
            assert end - first <= 113 * scale + 2 * max(scale, 1) + 8


def test_thin_frames_cost_no_more_than_square_ones() -> None:
    """A picture resized as a whole costs what its aspect ratio makes of it."""

    def operations(height: int, width: int) -> int:
        with FlopCounterMode(display=False) as counter:
            preprocess(noise(height, width)[None], GEOMETRIES[0])
        return counter.get_total_flops()

    square = operations(128, 128)
    for size in ((1, 2000), (2000, 1), (16, 16_000), (16_000, 16)):
        assert operations(*size) < square
    for size in ((1080, 1920), (1920, 1080)):
        assert operations(*size) < 1.1 * operations(1080, 1080)


def test_every_pixel_that_counts_is_in_the_window() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        crop = int(rng.integers(1, 40))
        size, new_size = int(rng.integers(1, 500)), int(crop + rng.integers(0, 300))
        low, high = sorted(rng.choice(crop + 1, 2, replace=False).tolist())
        first, end = Axis(size, new_size, crop, True).window(low, high)
        weights = triangle_weights(size, new_size, crop)[low:high]
        [counting] = np.nonzero((weights > 1e-9).any(0))
        assert first <= counting.min() <= counting.max() < end
