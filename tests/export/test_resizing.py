"""Pixels of the graph are those of torchvision, and cost what the crop needs."""

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch.nn.functional import interpolate
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.parity import open_session
from k400tiny_lib.export.resizing import resizing_graph
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


def resize_and_crop(frames: torch.Tensor, geometry: Geometry, kind: str = "MatMul") -> torch.Tensor:
    """(T, 3, crop, crop) that the last node of a kind gives: `MatMul`, or `Round` after it."""
    session, outputs = session_of(geometry)
    [name] = [name for name in outputs if name.endswith(kind)][-1:]
    return torch.from_numpy(session.run([name], {"frames": frames.numpy()[None]})[0])


@cache
def session_of(geometry: Geometry) -> tuple[onnxruntime.InferenceSession, list[str]]:
    """The nodes of resizing alone, each with its result as an output."""
    graph = resizing_graph("frames", "pictures", geometry)
    opsets = [onnx.helper.make_opsetid("", 18)]
    proto = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.checker.check_model(proto, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(proto)
    kinds = ("MatMul", "Round", "Slice")
    outputs = [v.name for v in inferred.graph.value_info if v.name.endswith(kinds)]
    proto.graph.output.extend(v for v in inferred.graph.value_info if v.name in outputs)
    return open_session(proto), outputs


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
    assert (resize_and_crop(frames, geometry) - exact).abs().max() < CLOSE
    expected = crop_views(frames, geometry, 1)[0].transpose(0, 1)
    differ = resize_and_crop(frames, geometry, "Round") != expected
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
    actual = resize_and_crop(frames, geometry)[0]
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
    frames = noise(336, 336)
    smooth, sharp = (resize_and_crop(frames, Geometry(1, (128,), 112, on)) for on in (True, False))
    assert (smooth - sharp).abs().mean() > 5


def pixels_cut(height: int, width: int, geometry: Geometry = GEOMETRIES[0]) -> int:
    """Pixels that are cut out of a frame to be resized, those in two strips counted twice."""
    session, outputs = session_of(geometry)
    names = [name for name in outputs if name.endswith("Slice")]
    pieces = session.run(names, {"frames": noise(height, width).numpy()[None]})
    return sum(piece.size // 3 for piece in pieces)


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (16, 16_000), (16_000, 16)], ids=str)
def test_thin_frames_cost_no_more_than_square_ones(size: tuple[int, int]) -> None:
    """A picture resized as a whole costs what its aspect ratio makes of it."""
    assert pixels_cut(*size) < pixels_cut(128, 128)


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080)], ids=str)
def test_no_more_is_resized_than_the_crop_shows(size: tuple[int, int]) -> None:
    """112 of 128 pixels of the short side, and as many of the other; four strips overlap."""
    assert pixels_cut(*size) < 1.1 * (1080 * 112 / 128) ** 2


def test_sizes_at_random_are_resized_right() -> None:
    """Every pixel that counts is in the window, and the crop starts where torchvision's does."""
    rng = np.random.default_rng(0)
    for _ in range(150):
        size = tuple(rng.integers(1, 300, 2).tolist())
        short = min(size)
        if max(size) > 40 * short:
            continue
        new_size = tuple(37 * side // short for side in size)
        frames = noise(*size)
        matrices = [triangle_weights(a, b, 32) for a, b in zip(size, new_size, strict=True)]
        exact = np.einsum(
            "ih,hwc,jw->cij", matrices[0], frames[0].double(), matrices[1], optimize=True
        )
        actual = resize_and_crop(frames, GEOMETRIES[1])[0]
        np.testing.assert_allclose(actual, exact, atol=CLOSE, err_msg=str(size))
