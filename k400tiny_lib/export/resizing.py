"""Resizing and cropping of frames as ONNX operations that every runtime computes alike.

The `Resize` of ONNX has an attribute `antialias` that OpenVINO and OpenCV ignore without a word,
and resizing a whole picture costs what its aspect ratio makes of it. Here the part of the frames
that the crop shows is cut out first, and its rows and columns are resized by matrix products.

The nodes are written down here, not exported from PyTorch, because its exporter takes a minute to
reason about the free sizes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from k400tiny_lib.models.loaded import Geometry

_STRIPS = 4
_MARGIN = 4  # half pixels of the source, for what integer division loses


def resizing_graph(frames: str, pictures: str, geometry: Geometry) -> onnx.GraphProto:
    """Resize and crop frames to the pixels of `evaluation.views.crop_views`.

    Args:
        frames: name of the input, uint8 (N, T, H, W, 3), RGB in [0, 255], of any N, T, H and W.
        pictures: name of the output, float32 (N, T, 3, crop_size, crop_size), whole numbers in
            [0, 255].
        geometry: sizes to resize to and to crop.
    """
    graph, crop = _Graph(), geometry.crop_size
    source = _Value(graph, frames)
    height, width = (graph.node("Shape", source, start=axis, end=axis + 1) for axis in (2, 3))
    new_height, new_width = _resized_size(height, width, geometry.resize)
    vertical = _Axis(height, new_height, crop, geometry.antialias)
    horizontal = _Axis(width, new_width, crop, geometry.antialias)
    left, right = horizontal.window(0, crop)
    strips = []
    # A row of the crop needs few of the window's rows. In strips the product skips most zeros, and
    # one strip at a time is in float32.
    for first in range(0, crop, -(-crop // _STRIPS)):
        end = min(first + -(-crop // _STRIPS), crop)
        top, bottom = vertical.window(first, end)
        corners = (graph.concat(top, left), graph.concat(bottom, right))
        pixels = graph.node("Slice", source, *corners, [2, 3])
        # Rows first: all channels of a row are one long row of the product.
        shape = graph.concat([-1], bottom - top, (right - left) * 3)
        rows = graph.node("Reshape", pixels, shape).to_float()  # (N * T, h, w * C)
        strips.append(graph.node("MatMul", vertical.weights(first, end, top, bottom), rows))
    images = graph.node("Reshape", graph.node("Concat", *strips, axis=1), [0, 0, -1, 3])
    images = graph.node("Transpose", images, perm=[0, 3, 1, 2])  # (N * T, crop, w, C) -> channels
    columns = graph.node("Transpose", horizontal.weights(0, crop, left, right), perm=[1, 0])
    resized = graph.node("MatMul", images, columns)  # (N * T, C, crop, crop)
    # Training and evaluation resize to uint8, so the graph rounds too. Weights of sum 1 that are
    # not negative keep to [0, 255].
    rounded = graph.node("Round", resized)
    videos = graph.node("Shape", source, start=0, end=2)
    shape = graph.concat(videos, [3, crop, crop])
    graph.node("Reshape", rounded, shape, output=pictures)
    sizes: tuple[list[str | int | None], ...]
    sizes = ["N", "T", "H", "W", 3], ["N", "T", 3, crop, crop]
    return helper.make_graph(
        graph.nodes,
        "resizing",
        [helper.make_tensor_value_info(frames, TensorProto.UINT8, sizes[0])],
        [helper.make_tensor_value_info(pictures, TensorProto.FLOAT, sizes[1])],
        graph.constants,
    )


def _resized_size(height: "_Value", width: "_Value", resize: tuple[int, ...]) -> "list[_Value]":
    """Height and width after resizing, in pixels, as torchvision's resize computes them."""
    if len(resize) == 2:
        return [height.graph.value([size]) for size in resize]
    short = height.graph.node("Min", height, width)
    return [side * resize[0] // short for side in (height, width)]


@dataclass(frozen=True)
class _Axis:
    """One axis of pictures that are resized and center-cropped.

    All numbers below count from the middle of the axis, or are not negative. So they stay so small
    that float32 and int32 hold them exactly (some runtimes have no int64), and integer division
    means the same everywhere.

    Attributes:
        size: of the source, in pixels.
        new_size: after resizing.
        crop: pixels of the crop.
        antialias: whether resizing smooths first.
    """

    size: "_Value"
    new_size: "_Value"
    crop: int
    antialias: bool

    @property
    def _support(self) -> "_Value":
        """Where a pixel ceases to count: one pixel of the source, or the coarser result."""
        if not self.antialias:
            return self.new_size
        return self.size.graph.node("Max", self.size, self.new_size)

    def _target(self, pixel: int) -> "_Value":
        """Twice the distance of a pixel of the crop from the middle of the resized axis."""
        spare = self.new_size - self.crop
        # Half of it, rounded to even as in torchvision's center_crop.
        offset = (spare + spare % 4 // 3) // 2
        return (offset + pixel) * 2 + 1 - self.new_size

    def window(self, first: int, end: int) -> "tuple[_Value, _Value]":
        """The pixels of the source that the crop's pixels from `first` to `end` depend on.

        Returns:
            The first, and the one after the last; with a few that do not count.
        """
        shift = self.crop + 1  # makes targets positive
        middle = self.size - self.size * shift // self.new_size
        reach = self._support * 2 // self.new_size + _MARGIN
        low = (self._target(first) + shift) * self.size // self.new_size
        high = (self._target(end - 1) + shift) * self.size // self.new_size
        node = self.size.graph.node
        start = node("Max", middle + low - reach, [0]) // 2
        return start, node("Min", (middle + high + reach) // 2 + 1, self.size)

    def weights(self, first: int, end: int, start: "_Value", stop: "_Value") -> "_Value":
        """The weights of the source's pixels in those of the crop.

        A pixel counts the less, the farther its center is from that of the resized pixel (the
        triangle filter of Pillow and PyTorch).

        Args:
            first, end: pixels of the crop.
            start, stop: their `window`.

        Returns:
            float32 (end - first, stop - start), rows of sum 1.
        """
        graph = self.size.graph
        zero, one = (graph.value(np.int64(number)) for number in (0, 1))
        pixels = graph.node("Range", zero, graph.node("Squeeze", stop - start), one)
        source = (pixels * 2 + (start * 2 + 1 - self.size)).to_float()
        steps = graph.value([[2 * step] for step in range(end - first)])
        target = (steps + self._target(first)).to_float()  # (end - first, 1)
        away = source * self.new_size.to_float() - target * self.size.to_float()
        away = graph.node("Abs", away)
        triangle = graph.node("Relu", (self._support * 2).to_float() - away)
        return triangle / graph.node("ReduceSum", triangle, [1], keepdims=1)


class _Graph:
    """Collects nodes and constants, each once; their names begin with `resizing`."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[str, _Value] = {}

    def node(self, kind: str, *inputs: Any, output: str = "", **attributes: Any) -> "_Value":
        """Add a node of one output, with values or integers as inputs."""
        names = [self.value(operand).name for operand in inputs]
        key = f"{kind} {names} {attributes}"
        if key not in self._known:
            name = f"resizing_{len(self.nodes)}_{kind}"
            self.nodes.append(helper.make_node(kind, names, [output or name], name, **attributes))
            self._known[key] = _Value(self, output or name)
        return self._known[key]

    def value(self, number: Any) -> "_Value":
        """A value as it is, or a constant of integers."""
        if isinstance(number, _Value):
            return number
        numbers = np.array(number, np.int64)
        key = f"{numbers.tolist()}"
        if key not in self._known:
            name = f"resizing_constant_{len(self.constants)}"
            self.constants.append(numpy_helper.from_array(numbers, name))
            self._known[key] = _Value(self, name)
        return self._known[key]

    def concat(self, *parts: Any) -> "_Value":
        """Join vectors."""
        return self.node("Concat", *parts, axis=0)


@dataclass(frozen=True)
class _Value:
    """A tensor of the graph; arithmetic with it adds nodes. Sizes are int64 (1,)."""

    graph: _Graph
    name: str

    def _with(self, kind: str, other: Any) -> "_Value":
        return self.graph.node(kind, self, [other] if isinstance(other, int) else other)

    def __add__(self, other: Any) -> "_Value":
        return self._with("Add", other)

    def __sub__(self, other: Any) -> "_Value":
        return self._with("Sub", other)

    def __mul__(self, other: Any) -> "_Value":
        return self._with("Mul", other)

    def __truediv__(self, other: Any) -> "_Value":
        return self._with("Div", other)

    def __floordiv__(self, other: Any) -> "_Value":
        return self._with("Div", other)  # of integers that are not negative

    def __mod__(self, other: Any) -> "_Value":
        return self._with("Mod", other)

    def to_float(self) -> "_Value":
        """As float32."""
        return self.graph.node("Cast", self, to=TensorProto.FLOAT)
