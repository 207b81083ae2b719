"""The beginning of R(2+1)D on sheets: the frames of a clip one under the other in one picture.

Between a convolution over space, which takes frames, and one over time, which takes clips, ONNX
Runtime copies its blocked layout two or three times. On a sheet (N, C, T * (H + 1), W) both are 2D
convolutions of the same picture: the empty row below every frame is the padding of its neighbours,
and the frame before is H + 1 rows up. It pays where pictures are large, in the stem and the first
stage, and in float32: the rows are kept empty with sums that int8 and fp16 could not hold.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

# Added to the row below a frame, it lets ReLU clear whatever the convolutions have left there.
_CLEARED = -1e30
# The runtime's fast kernels take whole blocks of channels: 16 of them with AVX-512, else 8.
_BLOCK = 16


class _Pair(nn.Module):
    """A convolution over space, a ReLU and one over time, with BatchNorm in their weights."""

    def __init__(
        self, space: nn.Conv3d, space_norm: nn.BatchNorm3d, time: nn.Conv3d, norm: nn.BatchNorm3d
    ) -> None:
        super().__init__()
        weight, self.space_bias = _fused(space, space_norm)
        self.space_weight = weight.squeeze(2)  # (C', C, k, k)
        weight, self.time_bias = _fused(time, norm)
        self.time_weight = weight.squeeze(4)  # (C'', C', 3, 1)
        assert not isinstance(space.padding, str)
        self.stride, self.padding = space.stride[1:], space.padding[1:]

    def space(self, pictures: Tensor) -> Tensor:
        """The first convolution and its ReLU, of frames or sheets (N, C, H, W)."""
        found = F.conv2d(pictures, self.space_weight, self.space_bias, self.stride, self.padding)
        return found.relu()

    def time(self, sheet: Tensor, rows: int) -> Tensor:
        """The second one, of sheets (N, C', T * rows, W)."""
        return F.conv2d(
            sheet, self.time_weight, self.time_bias, padding=(rows, 0), dilation=(rows, 1)
        )


def _fused(conv: nn.Conv3d, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
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
    """A residual block of two pairs."""

    def __init__(self, block: BasicBlock) -> None:
        super().__init__()
        self.first, self.second = (
            _Pair(pair[0], pair[1], pair[3], norm) for pair, norm in (block.conv1[:2], block.conv2)
        )

    def forward(self, sheet: Tensor, below: Tensor, rows: int) -> Tensor:
        """(N, C, T * rows, W) -> the same shape; `below` clears the row below every frame."""
        inner = (self.first.time(self.first.space(sheet), rows) + below).relu()
        return (self.second.time(self.second.space(inner), rows) + (sheet + below)).relu()


class SheetStem(nn.Module):
    """What the stem and the first stage of R(2+1)D compute in evaluation mode."""

    def __init__(self, stem: R2Plus1dStem, stage: nn.Sequential) -> None:
        super().__init__()
        space, space_norm, _, time, norm, _ = stem
        self.stem = _Pair(space, space_norm, time, norm)
        self.stage = nn.ModuleList(_Block(block) for block in stage)
        self.ones = self.stem.time_weight.new_ones((time.out_channels, 1, 1, 1))

    def forward(self, clips: Tensor) -> Tensor:
        """float32 (N, C, T, H, W) -> (N, C', T, H', W')."""
        frames = clips.transpose(1, 2)
        found = self.stem.space(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        sheet, rows = _sheet(found.transpose(1, 2), 0.0), found.shape[3] + 1
        below = _sheet(torch.zeros_like(found[:, :, :1]).transpose(1, 2), _CLEARED)
        # For all channels. What comes out of a convolution has the layout that is added fast.
        below = F.conv2d(below, self.ones)
        sheet = (self.stem.time(sheet, rows) + below).relu()
        for block in self.stage:
            sheet = block(sheet, below, rows)
        with_gaps: Tensor = sheet.unflatten(2, (-1, rows))
        return with_gaps[:, :, :, :-1]


def _sheet(clips: Tensor, below: float) -> Tensor:
    """(N, C, T, H, W) -> (N, C, T * (H + 1), W), with this value in the row below every frame."""
    return F.pad(clips, (0, 0, 0, 1), value=below).flatten(2, 3)


def on_sheets(model: nn.Module) -> nn.Module:
    """A model that computes the same in evaluation mode, its beginning on sheets where it can be.

    Between its convolutions over space and over time lie whole blocks of channels.

    Args:
        model: an R(2+1)D, which stays as it is, or any other, which is returned.
    """
    if not isinstance(model, VideoResNet) or not isinstance(model.stem, R2Plus1dStem):
        return model
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, R2Plus1dStem | Conv2Plus1D):
            _widen(module[0], module[1], module[3])
    if all(_fits(block) for block in twin.layer1):
        twin.stem, twin.layer1 = SheetStem(twin.stem, twin.layer1), nn.Identity()
    found: nn.Module = twin
    return found


def _widen(space: nn.Conv3d, norm: nn.BatchNorm3d, time: nn.Conv3d) -> None:
    """Give what lies between two convolutions whole blocks of channels; the new ones stay 0."""
    more = -space.out_channels % _BLOCK
    space.weight = nn.Parameter(F.pad(space.weight, (0, 0) * 4 + (0, more)))
    time.weight = nn.Parameter(F.pad(time.weight, (0, 0) * 3 + (0, more)))
    norm.weight, norm.bias = (nn.Parameter(F.pad(p, (0, more))) for p in (norm.weight, norm.bias))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean = F.pad(norm.running_mean, (0, more))
    norm.running_var = F.pad(norm.running_var, (0, more), value=1.0)


def _fits(block: nn.Module) -> bool:
    """Whether a block's frames keep their size and it takes space and time one after the other."""
    return (
        isinstance(block, BasicBlock)
        and block.downsample is None
        and all(isinstance(conv[0], Conv2Plus1D) for conv in (block.conv1, block.conv2))
    )
