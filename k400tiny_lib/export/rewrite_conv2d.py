"""Rewrites the convolutions of a graph over space or time alone as 2D convolutions.

ONNX Runtime has far better kernels for 2D than for 3D convolutions. A (1, k, k) convolution is a
2D convolution of N * T images (H, W), a (k, 1, 1) one of N images (T, H * W);
`k400tiny_lib.models.conv2d` does the same for PyTorch. Here the graph is rewritten, because the
exporter has already folded BatchNorm into the convolutions, and because the ReLU has to follow the
convolution directly for the runtime to fuse the two.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxscript import ir
from onnxscript.rewriter import MatchResult, rewrite
from onnxscript.rewriter.pattern import RewriteRuleClassBase

_SWAP_TIME_AND_CHANNELS = [0, 2, 1, 3, 4]


@dataclass(frozen=True)
class _Conv3d:
    """A 3D convolution of a graph; values for three axes are in the order (T, H, W)."""

    weight: npt.NDArray[Any]  # (C out, C in, T, H, W)
    bias: list[ir.Value | None]  # one, or none
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
        keeps_space = self.strides[1:] == [1, 1] and not any(self.pads[1:3] + self.pads[4:])
        return time > 1 and space == [1, 1] and keeps_space


def _read(y: ir.Value) -> _Conv3d | None:
    """The convolution that computes y; None if it is not 3D or one of C, H and W is free."""
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


class _In2d(RewriteRuleClassBase):
    """Matches a convolution, together with the ReLU after it or alone."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def pattern(self, op: Any, x: ir.Value) -> Any:
        y = op.Conv(x, _allow_other_inputs=True, _allow_other_attributes=True, _outputs=["y"])
        return op.Relu(y) if self.relu else y

    @abstractmethod
    def fits(self, conv: _Conv3d) -> bool:
        """Whether the rule is for this convolution."""

    def check(self, op: Any, x: ir.Value, y: ir.Value) -> MatchResult:
        conv = _read(y)
        return MatchResult() if conv and self.fits(conv) else MatchResult().fail("another kind")

    def convolve(self, op: Any, images: Any, y: ir.Value, axes: tuple[int, int]) -> Any:
        """Convolve images (N, C, h, w), where h and w are these two of the axes (T, H, W)."""
        conv = _matched(y)
        [dropped] = {0, 1, 2} - set(axes)
        convolved = op.Conv(
            images,
            op.initializer(ir.tensor(conv.weight.squeeze(2 + dropped)), f"{y.name}_weight_2d"),
            *conv.bias,
            group=conv.group,
            strides=[conv.strides[axis] for axis in axes],
            dilations=[conv.dilations[axis] for axis in axes],
            pads=[conv.pads[axis + end] for end in (0, 3) for axis in axes],
        )
        return op.Relu(convolved) if self.relu else convolved


class _Spatial(_In2d):
    """The frames of all clips as one batch: (N, C, T, H, W) -> (N * T, C, H, W) and back."""

    def fits(self, conv: _Conv3d) -> bool:
        return conv.is_spatial

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        conv = _matched(y)
        swapped = op.Transpose(x, perm=_SWAP_TIME_AND_CHANNELS)
        images = self.convolve(op, op.Reshape(swapped, _sizes(op, -1, *conv.in_sizes)), y, (1, 2))
        num_clips = op.Shape(x, start=0, end=1)
        shape = op.Concat(num_clips, _sizes(op, -1, *conv.out_sizes), axis=0)
        return op.Transpose(op.Reshape(images, shape), perm=_SWAP_TIME_AND_CHANNELS)


class _Temporal(_In2d):
    """A clip as one image of T rows: (N, C, T, H, W) -> (N, C, T, H * W) and back."""

    def fits(self, conv: _Conv3d) -> bool:
        return conv.is_temporal

    def rewrite(self, op: Any, x: ir.Value, y: ir.Value) -> Any:
        images = self.convolve(op, op.Reshape(x, _sizes(op, 0, 0, 0, -1)), y, (0, 1))
        return op.Reshape(images, _sizes(op, 0, 0, 0, *_matched(y).out_sizes[1:]))


def _matched(y: ir.Value) -> _Conv3d:
    conv = _read(y)
    assert conv is not None  # `check` refused all others
    return conv


def _sizes(op: Any, *sizes: int) -> Any:
    return op.Constant(value=ir.tensor(np.array(sizes, np.int64)))


def convolve_in_2d(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Compute the convolutions over space or time alone in 2D; only the rounding differs.

    Args:
        proto: a graph with inferred shapes; a convolution of free H or W is left alone.

    Returns:
        Another graph of the same function, with the same inputs, outputs and metadata.
    """
    # First with ReLU: the rules without it would match the same convolutions.
    for relu in (True, False):
        rules = [_Spatial.rule(relu), _Temporal.rule(relu)]
        proto = rewrite(proto, pattern_rewrite_rules=rules)
    return proto
