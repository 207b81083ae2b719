"""Runs the stem and first stage of R(2+1)D on frames packed vertically into one image.

Between a spatial convolution, which takes frames, and a temporal one, which takes clips, ONNX
Runtime re-layouts its blocked tensors two or three times. On a packed image (N, C, T * (H + 1), W)
both are 2D convolutions of the same layout: an empty row below every frame is the padding of its
neighbors, and the previous frame is H + 1 rows up. This pays where images are large, in the stem
and the first stage, and only in float32: the rows are kept empty by sums that int8 and fp16 cannot
represent.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

# Added to the padding rows so that the next ReLU resets them to zero.
_CLEARED = -1e30
# The runtime's fast kernels take whole blocks of channels: 16 of them with AVX-512, else 8.
_BLOCK = 16


class _Conv2Plus1D(nn.Module):
    """A spatial convolution, a ReLU and a temporal convolution, BatchNorm folded into both."""

    def __init__(
        self, space: nn.Conv3d, space_norm: nn.BatchNorm3d, time: nn.Conv3d, norm: nn.BatchNorm3d
    ) -> None:
        super().__init__()
        weight, self.space_bias = _fold(space, space_norm)
        self.space_weight = weight.squeeze(2)  # (C', C, k, k)
        weight, self.time_bias = _fold(time, norm)
        self.time_weight = weight.squeeze(4)  # (C'', C', 3, 1)
        assert not isinstance(space.padding, str)
        self.stride, self.padding = space.stride[1:], space.padding[1:]

    def space(self, images: Tensor) -> Tensor:
        """The spatial convolution and its ReLU, of frames or packed images (N, C, H, W)."""
        convolved = F.conv2d(images, self.space_weight, self.space_bias, self.stride, self.padding)
        return convolved.relu()

    def time(self, packed: Tensor, rows: int) -> Tensor:
        """The temporal convolution of packed images (N, C', T * rows, W)."""
        return F.conv2d(
            packed, self.time_weight, self.time_bias, padding=(rows, 0), dilation=(rows, 1)
        )


def _fold(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return fuse_conv_bn_weights(
        conv.weight,
        conv.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


class _Block(nn.Module):
    """A residual block of two (2+1)D convolutions."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.first, self.second = (
            _Conv2Plus1D(conv[0], conv[1], conv[3], norm)
            for conv, norm in (block.conv1[:2], block.conv2)
        )

    def forward(self, packed: Tensor, clearing: Tensor, rows: int) -> Tensor:
        """(N, C, T * rows, W) -> the same shape; `clearing` resets the row below every frame."""
        inner = (self.first.time(self.first.space(packed), rows) + clearing).relu()
        return (self.second.time(self.second.space(inner), rows) + (packed + clearing)).relu()


class RowPackedStem(nn.Module):
    """The stem and the first stage of R(2+1)D in evaluation mode, on packed images."""

    def __init__(self, stem: R2Plus1dStem, stage: nn.Sequential) -> None:
        super().__init__()
        space, space_norm, _, time, norm, _ = stem
        self.stem = _Conv2Plus1D(space, space_norm, time, norm)
        self.stage = nn.ModuleList(_Block(block) for block in stage)
        self.ones = self.stem.time_weight.new_ones((time.out_channels, 1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """float32 (N, C, T, H, W) -> (N, C', T, H', W')."""
        frames = clips.transpose(1, 2)
        features = self.stem.space(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        packed, rows = _pack(features.transpose(1, 2), 0.0), features.shape[3] + 1
        clearing = _pack(torch.zeros_like(features[:, :, :1]).transpose(1, 2), _CLEARED)
        # Repeats the value for all channels; the output of a convolution already has the blocked
        # layout, which makes the additions fast.
        clearing = F.conv2d(clearing, self.ones)
        packed = (self.stem.time(packed, rows) + clearing).relu()
        for block in self.stage:
            packed = block(packed, clearing, rows)
        unpacked: Tensor = packed.unflatten(2, (-1, rows))
        return unpacked[:, :, :, :-1]


def _pack(clips: Tensor, below: float) -> Tensor:
    """(N, C, T, H, W) -> (N, C, T * (H + 1), W), with this value in the row below every frame."""
    return F.pad(clips, (0, 0, 0, 1), value=below).flatten(2, 3)


def pack_rows(model: nn.Module) -> nn.Module:
    """A model of the same function in evaluation mode that ONNX Runtime computes faster.

    Stem and first stage become a `RowPackedStem`, and the channels between spatial and temporal
    convolutions are padded to whole blocks.

    Args:
        model: an R(2+1)D, which is not changed; any other is returned as it is.
    """
    if not isinstance(model, VideoResNet) or not isinstance(model.stem, R2Plus1dStem):
        return model
    packed: Any = copy.deepcopy(model)
    for module in packed.modules():
        if isinstance(module, R2Plus1dStem | Conv2Plus1D):
            _pad_channels(module[0], module[1], module[3])
    if all(_keeps_size(block) for block in packed.layer1):
        packed.stem, packed.layer1 = RowPackedStem(packed.stem, packed.layer1), nn.Identity()
    result: nn.Module = packed
    return result


def _pad_channels(space: nn.Conv3d, norm: nn.BatchNorm3d, time: nn.Conv3d) -> None:
    """Add channels that stay 0 between two convolutions, up to whole blocks."""
    more = -space.out_channels % _BLOCK
    space.weight = nn.Parameter(F.pad(space.weight, (0, 0) * 4 + (0, more)))
    time.weight = nn.Parameter(F.pad(time.weight, (0, 0) * 3 + (0, more)))
    norm.weight, norm.bias = (nn.Parameter(F.pad(p, (0, more))) for p in (norm.weight, norm.bias))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean = F.pad(norm.running_mean, (0, more))
    norm.running_var = F.pad(norm.running_var, (0, more), value=1.0)


def _keeps_size(block: nn.Module) -> bool:
    """Whether a residual block of (2+1)D convolutions has no downsampling."""
    return (
        isinstance(block, BasicBlock)
        and block.downsample is None
        and all(isinstance(conv[0], Conv2Plus1D) for conv in (block.conv1, block.conv2))
    )
