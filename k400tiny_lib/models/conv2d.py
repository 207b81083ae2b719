"""Convolutions over space or over time alone, computed by the kernels for pictures.

A (1, k, k) convolution is a 2D convolution of N * T pictures (H, W), a (k, 1, 1) one is a 2D
convolution of N pictures (T, H * W). In channels-last memory (N, T, H, W, C) both pictures are
views of the clip. cuDNN has far better kernels for 2D than for 3D convolutions.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from k400tiny_lib.system import has_bf16_matmul


class SpatialConv(nn.Conv3d):
    """A (1, k, k) convolution without padding in time, as a 2D convolution of single frames."""

    def forward(self, clips: Tensor) -> Tensor:
        """Convolve (N, C, T, H, W)."""
        steps, rows, columns = self.stride
        clips = clips[:, :, ::steps]
        frames = clips.transpose(1, 2).flatten(0, 1)  # -> (N * T, C, H, W)
        _, *padding = _sizes(self.padding)
        frames = F.conv2d(
            frames,
            self.weight.squeeze(2),
            self.bias,
            (rows, columns),
            padding,
            self.dilation[1:],
            self.groups,
        )
        found: Tensor = frames.unflatten(0, (len(clips), -1)).transpose(1, 2)
        return found  # (N, C, T, H, W)


class TemporalConv(nn.Conv3d):
    """A (k, 1, 1) convolution of stride 1 in space, as a 2D convolution over (T, H * W)."""

    def forward(self, clips: Tensor) -> Tensor:
        """Convolve (N, C, T, H, W)."""
        steps, _, _ = self.stride
        padding, _, _ = _sizes(self.padding)
        pictures = F.conv2d(
            clips.flatten(3),
            self.weight.squeeze(-1),
            self.bias,
            (steps, 1),
            (padding, 0),
            (self.dilation[0], 1),
            self.groups,
        )
        found: Tensor = pictures.unflatten(3, clips.shape[3:])
        return found


def _sizes(padding: tuple[int, ...] | str) -> tuple[int, ...]:
    assert not isinstance(padding, str)  # of no convolution that `as_2d` takes
    return padding


def as_2d(model: nn.Module) -> nn.Module:
    """Compute the convolutions of a model over space or time alone in 2D, where they stand.

    Parameters, their names and the function stay; only the rounding differs.
    """
    for module in model.modules():
        if type(module) is not nn.Conv3d or isinstance(module.padding, str):
            continue
        time, *space = module.kernel_size
        time_padding, *space_padding = module.padding
        if time == 1 and time_padding == 0:
            module.__class__ = SpatialConv
        elif space == [1, 1] and module.stride[1:] == (1, 1) and space_padding == [0, 0]:
            module.__class__ = TemporalConv
    return model


def fastest_form(model: nn.Module, device: torch.device, channels_last: bool | str) -> nn.Module:
    """Move a model to a device, in the form that runs fastest there.

    Args:
        model: changed in place; its `state_dict` keeps its names and shapes.
        device: where to.
        channels_last: channels-last memory and 2D convolutions, or neither; `auto` decides by the
            device: both on a GPU and on a CPU with matrix instructions for bf16, neither on
            another CPU, where they change little (benchmarks/training_step.py).

    Returns:
        The model.
    """
    model = model.to(device)
    if channels_last == "auto":
        channels_last = device.type == "cuda" or has_bf16_matmul(device)
    # The first convolution brings the clips into the memory format of its weights.
    return as_2d(model).to(memory_format=torch.channels_last_3d) if channels_last else model
