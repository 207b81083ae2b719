"""Convolutions of a graph over space or over time alone, as 2D convolutions.

ONNX Runtime has far better kernels for 2D than for 3D convolutions. A (1, k, k) convolution is one
of N * T pictures (H, W), a (k, 1, 1) one is one of N pictures (T, H * W), as in
`k400tiny_lib.models.conv2d`, which does the same for PyTorch. Here it is done to the graph, because
the exporter has folded BatchNorm into the convolutions, and the ReLU after one can stay at its
side, where the runtime computes both at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxscript import ir
from onnxscript.rewriter import rewrite
from onnxscript.rewriter.pattern import RewriteRule

# From pictures, the two of the axes (T, H, W) that they have, and the axis that the weight loses.
_Convolve = Callable[[Any, tuple[int, int], int], Any]

_SWAP_TIME_AND_CHANNELS = [0, 2, 1, 3, 4]


@dataclass(frozen=True)
class _Conv3d:
    """A 3D convolution of a graph; everything of three axes is in the order (T, H, W)."""

    weight: npt.NDArray[Any]  # (C out, C in, T, H, W)
    bias: list[ir.Value | None]  # or none
    group: int
    strides: list[int]
    dilations: list[int]
    pads: list[int]  # before each axis, then after each
    in_sizes: list[int]  # (C, H, W)
    out_sizes: list[int]

    @property
    def is_spatial(self) -> bool:
        """Whether it is over (H, W) alone."""
        time, *space = self.weight.shape[2:]
        return time == 1 and space != [1, 1] and (self.strides[0], *self.pads[::3]) == (1, 0, 0)

    @property
    def is_temporal(self) -> bool:
        """Whether it is over T alone."""
        time, *space = self.weight.shape[2:]
        still = self.strides[1:] == [1, 1] and not any(self.pads[1:3] + self.pads[4:])
        return time > 1 and space == [1, 1] and still


def _read(y: ir.Value) -> _Conv3d | None:
    """The convolution that computes y; None if it is not 3D or a size is free that must not be."""
    node = y.producer()
    if node is None:
        return None
    x, kernel, *bias = node.inputs
    if x is None or kernel is None or x.shape is None or y.shape is None:
        return None
    weight = ir.convenience.get_const_tensor(kernel)
    in_sizes, out_sizes = (
        [size for size in (shape[1], *shape[3:]) if isinstance(size, int)]
        for shape in (x.shape, y.shape)
    )
    padded_by_rule = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    if weight is None or (len(in_sizes), len(out_sizes)) != (3, 3) or padded_by_rule:
        return None
    strides, dilations, pads = (
        list(node.attributes.get_ints(name, default))
        for name, default in (("strides", [1] * 3), ("dilations", [1] * 3), ("pads", [0] * 6))
    )
    group = node.attributes.get_int("group", 1)
    return _Conv3d(weight.numpy(), bias, group, strides, dilations, pads, in_sizes, out_sizes)


def _spatial_in_2d(op: Any, x: ir.Value, conv: _Conv3d, convolve: _Convolve) -> Any:
    """The frames of all clips as one batch: (N, C, T, H, W) -> (N * T, C, H, W) and back."""
    swapped = op.Transpose(x, perm=_SWAP_TIME_AND_CHANNELS)
    found = convolve(op.Reshape(swapped, _sizes(op, -1, *conv.in_sizes)), (1, 2), 2)
    num_clips = op.Shape(x, start=0, end=1)
    clips = op.Reshape(found, op.Concat(num_clips, _sizes(op, -1, *conv.out_sizes), axis=0))
    return op.Transpose(clips, perm=_SWAP_TIME_AND_CHANNELS)


def _temporal_in_2d(op: Any, x: ir.Value, conv: _Conv3d, convolve: _Convolve) -> Any:
    """A clip as one picture of T rows: (N, C, T, H, W) -> (N, C, T, H * W) and back."""
    found = convolve(op.Reshape(x, _sizes(op, 0, 0, 0, -1)), (0, 1), 4)
    return op.Reshape(found, _sizes(op, 0, 0, 0, *conv.out_sizes[1:]))


def _rule(spatial: bool, relu: bool) -> RewriteRule:
    """Replaces one kind of convolution, with the ReLU after it or alone."""

    def pattern(op: Any, x: ir.Value) -> Any:
        y = op.Conv(x, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])
        return op.Relu(y) if relu else y

    def check(_: object, x: ir.Value, y: ir.Value) -> bool:
        conv = _read(y)
        return conv is not None and (conv.is_spatial if spatial else conv.is_temporal)

    def replacement(op: Any, x: ir.Value, y: ir.Value) -> Any:
        conv = _read(y)
        assert conv is not None  # `check` has seen to it

        def convolve(pictures: Any, axes: tuple[int, int], squeezed: int) -> Any:
            weight = ir.tensor(conv.weight.squeeze(squeezed))
            found = op.Conv(
                pictures,
                op.initializer(weight, f"{y.name}_weight_2d"),
                *conv.bias,
                group=conv.group,
                strides=[conv.strides[axis] for axis in axes],
                dilations=[conv.dilations[axis] for axis in axes],
                pads=[conv.pads[axis + end] for end in (0, 3) for axis in axes],
            )
            return op.Relu(found) if relu else found

        return (_spatial_in_2d if spatial else _temporal_in_2d)(op, x, conv, convolve)

    return RewriteRule(pattern, replacement, check)


def _sizes(op: Any, *sizes: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(sizes, np.int64)))


def convolve_in_2d(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Compute the convolutions over space or time alone in 2D; only the rounding differs.

    Args:
        proto: a graph whose shapes are inferred; a convolution stays where H or W is free.

    Returns:
        Another graph of the same function, with the same inputs, outputs and metadata.
    """
    for relu in (True, False):  # a convolution stands before its ReLU and would be met alone
        rules = [_rule(spatial, relu) for spatial in (True, False)]
        proto = rewrite(proto, pattern_rewrite_rules=rules)
    return proto
