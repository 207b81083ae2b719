"""Convolutions over space or over time alone, computed by the 2D kernels.

A (1, k, k) convolution is a 2D convolution of N * T images (H, W), a (k, 1, 1) one is a 2D
convolution of N images (T, H * W). In channels-last memory (N, T, H, W, C) both are views of the
clip. cuDNN has far better kernels for 2D than for 3D convolutions.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from k400tiny_lib.system import has_bf16_matmul

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of axes


class SpatialConv(nn.Conv3d):
    """A (1, k, k) convolution without padding in time, as a 2D convolution of single frames."""

    def forward(self, clips: Tensor) -> Tensor:
        """Convolve (N, C, T, H, W)."""
        time_stride, *stride = self.stride
        clips = clips[:, :, ::time_stride]
        frames = clips.transpose(1, 2).flatten(0, 1)  # -> (N * T, C, H, W)
        _, *padding = _sizes(self.padding)
        weight, dilation = self.weight.squeeze(2), self.dilation[1:]
        frames = F.conv2d(frames, weight, self.bias, stride, padding, dilation, self.groups)
        convolved: Tensor = frames.unflatten(0, (len(clips), -1)).transpose(1, 2)
        return convolved  # (N, C, T, H, W)


class TemporalConv(nn.Conv3d):
    """A (k, 1, 1) convolution of stride 1 in space, as a 2D convolution over (T, H * W)."""

    def forward(self, clips: Tensor) -> Tensor:
        """Convolve (N, C, T, H, W)."""
        stride, padding = (self.stride[0], 1), (_sizes(self.padding)[0], 0)
        images, weight = clips.flatten(3), self.weight.squeeze(-1)
        dilation = (self.dilation[0], 1)
        images = F.conv2d(images, weight, self.bias, stride, padding, dilation, self.groups)
        convolved: Tensor = images.unflatten(3, clips.shape[3:])
        return convolved


def _sizes(padding: tuple[int, ...] | str) -> tuple[int, ...]:
    return cast(tuple[int, ...], padding)  # `decompose_conv3d` leaves "same" and "valid" alone


def _form_2d(module: nn.Module) -> type[nn.Conv3d] | None:
    """The class that computes a module in 2D, for a convolution over space or time alone."""
    if type(module) is not nn.Conv3d or isinstance(module.padding, str):
        return None
    time, *space = module.kernel_size
    time_padding, *space_padding = module.padding
    if time == 1 and time_padding == 0:
        return SpatialConv
    if space == [1, 1] and module.stride[1:] == (1, 1) and space_padding == [0, 0]:
        return TemporalConv
    return None


def decompose_conv3d(model: nn.Module) -> nn.Module:
    """Compute the convolutions of a model over space or time alone in 2D, in place.

    Parameters, their names and the function stay; only the rounding differs.
    """
    for module in model.modules():
        if form := _form_2d(module):
            module.__class__ = form
    return model


def has_conv3d(model: nn.Module) -> bool:
    """Whether a model has convolutions that are computed in 3D.

    On a CPU their bf16 gradients cannot be used: for clips of few frames, oneDNN's were seen to be
    infinite or wrong by orders of magnitude (PyTorch 2.11 and 2.14 on avx512_bf16).
    """
    return any(type(module) is nn.Conv3d for module in model.modules())


def has_depthwise_conv2d(model: nn.Module) -> bool:
    """Whether a model has 2D convolutions of single channels.

    Their bf16 gradients are right on a CPU, but the training steps of such a model are slower than
    in float32: these convolutions wait for memory, not for products.
    """
    return any(isinstance(m, nn.Conv2d) and m.groups == m.in_channels > 1 for m in model.modules())


def to_fast_layout(
    model: nn.Module, device: torch.device, channels_last: bool | Literal["auto"]
) -> nn.Module:
    """Move a model to a device, in place, in the memory layout that runs fastest there.

    Args:
        model: its `state_dict` keeps its names and shapes.
        device: the target.
        channels_last: channels-last memory and 2D convolutions, or neither; `auto` decides by the
            device: both on a GPU, and on a CPU that multiplies bf16 if the model has no other
            convolutions; elsewhere they change little (benchmarks/training_step.py). A network of
            frames has this memory everywhere: it takes a third off its training steps.
    """
    model = model.to(device)
    if channels_last == "auto":
        in_3d = [module for module in model.modules() if isinstance(module, nn.Conv3d)]
        all_in_2d = all(map(_form_2d, in_3d))
        gains_on_cpu = not in_3d or (has_bf16_matmul(device) and all_in_2d)
        channels_last = device.type == "cuda" or gains_on_cpu
    if not channels_last:
        return model
    # The first convolution brings the clips into the memory format of its weights.
    for weight in decompose_conv3d(model).parameters():
        if layout := _CHANNELS_LAST.get(weight.ndim):
            weight.data = weight.data.contiguous(memory_format=layout)
    return model
