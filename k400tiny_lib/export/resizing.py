"""Resizing and cropping of frames with operations that every runtime computes alike.

The `Resize` of ONNX has an attribute `antialias` that OpenVINO and OpenCV ignore without a word,
and resizing a whole picture costs what its aspect ratio makes of it. Here the part of the frames
that the crop shows is cut out first, and its rows and columns are resized by a matrix product each.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from k400tiny_lib.models.loaded import Geometry

_STRIPS = 4
_MARGIN = 4  # half pixels of the source, for what integer division loses


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
    crop = geometry.crop_size
    vertical = Axis(height, new_height, crop, geometry.antialias)
    horizontal = Axis(width, new_width, crop, geometry.antialias)
    left, right = horizontal.window(0, crop)
    strips = []
    # A row of the crop needs few of the window's rows. In strips the product skips most zeros, and
    # one strip at a time is in float32.
    height_of_strip = -(-crop // _STRIPS)
    for first in range(0, crop, height_of_strip):
        end = min(first + height_of_strip, crop)
        top, bottom = vertical.window(first, end)
        pixels = frames[:, :, top:bottom, left:right].flatten(0, 1)  # -> (N * T, h, w, C)
        # Rows first: all channels of a row are one long row of the product.
        strips.append(vertical.weights(first, end, top, bottom) @ pixels.flatten(2).float())
    images = torch.cat(strips, 1).unflatten(2, (right - left, 3))
    # (N * T, crop, w, C) -> (N * T, C, crop, w) -> (N * T, C, crop, crop)
    resized: Tensor = images.permute(0, 3, 1, 2) @ horizontal.weights(0, crop, left, right).T
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


@dataclass(frozen=True)
class Axis:
    """One axis of a picture that is resized and center-cropped. Sizes may be symbolic.

    All numbers below count from the middle of the axis, or are not negative. So they stay so small
    that float32 and int32 hold them exactly (some runtimes have no int64), and integer division
    means the same everywhere.

    Attributes:
        size: of the source, in pixels.
        new_size: after resizing.
        crop: pixels of the crop.
        antialias: whether resizing smooths first.
    """

    size: Any
    new_size: Any
    crop: int
    antialias: bool

    @property
    def _support(self) -> Any:
        """Where a pixel ceases to count: one pixel of the source, or the coarser result."""
        return torch.sym_max(self.size, self.new_size) if self.antialias else self.new_size

    def _target(self, pixel: int) -> Any:
        """Twice the distance of a pixel of the crop from the middle of the resized axis."""
        return 2 * (center_offset(self.new_size, self.crop) + pixel) + 1 - self.new_size

    def window(self, first: int, end: int) -> tuple[Any, Any]:
        """The pixels of the source that the crop's pixels from `first` to `end` depend on.

        Returns:
            The first, and the one after the last; with a few that do not count.
        """
        shift = self.crop + 1  # makes targets positive
        middle = self.size - shift * self.size // self.new_size
        reach = 2 * self._support // self.new_size + _MARGIN
        low = (self._target(first) + shift) * self.size // self.new_size
        high = (self._target(end - 1) + shift) * self.size // self.new_size
        start = torch.sym_max(middle + low - reach, 0) // 2
        return start, torch.sym_min((middle + high + reach) // 2 + 1, self.size)

    def weights(self, first: int, end: int, start: Any, stop: Any) -> Tensor:
        """The weights of the source's pixels in those of the crop.

        A pixel counts the less, the farther its center is from that of the resized pixel (the
        triangle filter of Pillow and PyTorch).

        Args:
            first, end: pixels of the crop.
            start, stop: their `window`.

        Returns:
            float32 (end - first, stop - start), rows of sum 1.
        """
        source = (2 * torch.arange(stop - start) + (2 * start + 1 - self.size)).float()
        target = (2 * torch.arange(end - first) + self._target(first)).float()
        away = (source * self.new_size - target[:, None] * self.size).abs()
        triangle: Tensor = (2 * self._support - away).relu()
        return triangle / triangle.sum(1, keepdim=True)
