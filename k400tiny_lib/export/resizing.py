"""Resizing and cropping of frames with operations that every runtime computes alike.

The `Resize` of ONNX has an attribute `antialias` that OpenVINO and OpenCV ignore without a word,
and resizing a whole picture costs what its aspect ratio makes of it. Here the part of the frames
that the crop shows is cut out first, and its rows and columns are resized by a matrix product each.
"""

from typing import Any

import torch
from torch import Tensor

from k400tiny_lib.models.loaded import Geometry

_MARGIN = 2  # source pixels, for what integer division loses on either side


def preprocess(frames: Tensor, geometry: Geometry) -> Tensor:
    """Resize and crop frames to the pixels of `evaluation.views.crop_views`.

    Args:
        frames: uint8 (N, T, H, W, 3), RGB in [0, 255].
        geometry: sizes to resize to and to crop.

    Returns:
        float32 (N * T, 3, crop_size, crop_size), whole numbers in [0, 255].
    """
    # Training and evaluation resize to uint8, so the graph rounds too. Weights of sum 1 that are
    # not negative keep to [0, 255].
    return resize_and_crop(frames, geometry).round()


def resize_and_crop(frames: Tensor, geometry: Geometry) -> Tensor:
    """Resize, bilinear, and crop the center, written to be exported with a free height and width.

    Args:
        frames: uint8 (N, T, H, W, 3), RGB in [0, 255].
        geometry: sizes to resize to and to crop.

    Returns:
        float32 (N * T, 3, crop_size, crop_size) in [0, 255].
    """
    height, width = frames.shape[2:4]
    new_height, new_width = resized_size(height, width, geometry.resize)
    crop, smooth = geometry.crop_size, geometry.antialias
    top, bottom = window(height, new_height, crop, smooth)
    left, right = window(width, new_width, crop, smooth)
    images = frames[:, :, top:bottom, left:right].flatten(0, 1)  # -> (N * T, h, w, C)
    rows = weights(height, new_height, crop, smooth, top, bottom)
    columns = weights(width, new_width, crop, smooth, left, right)
    # Rows first: all channels of a row are one long row of the product.
    images = (rows @ images.flatten(2).float()).unflatten(2, (right - left, 3))
    # (N * T, crop, w, C) -> (N * T, C, crop, w) -> (N * T, C, crop, crop)
    resized: Tensor = images.permute(0, 3, 1, 2) @ columns.T
    return resized


def resized_size(height: Any, width: Any, resize: tuple[int, ...]) -> tuple[Any, Any]:
    """Height and width after resizing, in pixels, as torchvision's resize computes them.

    Args:
        height, width: of the source, perhaps symbolic.
        resize: short side, or height and width, after resizing.
    """
    if len(resize) == 2:
        return resize
    [size], short = resize, torch.sym_min(height, width)
    return size * height // short, size * width // short


def center_offset(size: Any, crop: int) -> Any:
    """First row of a center crop, halves rounded to even as in torchvision's center_crop.

    Python's round() cannot be exported for a free size, integer arithmetic can.
    """
    spare = size - crop
    return (spare + spare % 4 // 3) // 2


def window(size: Any, new_size: Any, crop: int, antialias: bool) -> tuple[Any, Any]:
    """The pixels of one axis that a center crop depends on: first, and the one after the last.

    Args:
        size: of the source, perhaps symbolic.
        new_size: after resizing.
        crop: pixels of the crop.
        antialias: whether resizing smooths first.
    """
    support = torch.sym_max(size, new_size) if antialias else new_size
    # The crop's middle is at most half a pixel from that of the picture.
    reach = ((crop + 1) * size + 2 * support) // (2 * new_size) + _MARGIN
    middle = size // 2
    return torch.sym_max(middle - reach, 0), torch.sym_min(middle + reach, size)


def weights(size: Any, new_size: Any, crop: int, antialias: bool, first: Any, end: Any) -> Tensor:
    """The weights of the source's pixels in those of the crop, along one axis.

    A pixel counts the less, the farther its center is from that of the resized pixel, and not at
    all from one pixel on: of the source, or of the result where that is coarser and `antialias` is
    set (Pillow's and PyTorch's triangle filter).

    Args:
        size, new_size, crop, antialias: as for `window`.
        first, end: from `window`.

    Returns:
        float32 (crop, end - first), rows of sum 1.
    """
    # Twice the distance of every pixel from the middle of the axis, in pixels. Counted from the
    # middle, the numbers below stay so small that float32 and int32 hold them exactly: some
    # runtimes have no int64.
    source = (2 * torch.arange(end - first) + (2 * first + 1 - size)).float()
    crop_start = 2 * center_offset(new_size, crop) + 1 - new_size
    target = (2 * torch.arange(crop) + crop_start).float()
    away = (source * new_size - target[:, None] * size).abs()
    support = torch.sym_max(size, new_size) if antialias else new_size
    triangle: Tensor = (2 * support - away).clamp(min=0)
    return triangle / triangle.sum(1, keepdim=True)
