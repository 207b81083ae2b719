"""Deterministic transforms of frames: resize, center crop, normalize."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F


def resize_short_side(images: Tensor, resize_size: int) -> Tensor:
    """Resize the short side with torchvision's uint8 kernel and antialiasing, as training does.

    Args:
        images: uint8 (T, C, H, W), RGB in [0, 255].
        resize_size: short side after resizing, in pixels.

    Returns:
        uint8 (T, C, h, w), min(h, w) = resize_size.
    """
    resized: Tensor = F.resize(images, [resize_size], antialias=True)
    return resized


def resize_exactly(frames: Tensor, size: Sequence[int], antialias: bool = True) -> Tensor:
    """Resize as the exported graph does: bilinear in float32, rounded at the end.

    torchvision's uint8 kernel, which training uses, is 13 times faster, but changes one pixel in
    eight by one level and the probabilities by about 1e-4. Evaluation uses this function, so that
    its scores are those of the registered model.

    Args:
        frames: uint8 (T, H, W, C), RGB in [0, 255].
        size: short side, or height and width, after resizing; in pixels.
        antialias: whether to smooth first; the `transforms()` of torchvision's weights do not.

    Returns:
        uint8 (C, T, h, w).
    """
    images = frames.permute(0, 3, 1, 2).float()  # (T, H, W, C) -> (T, C, H, W)
    resized: Tensor = F.resize(images, list(size), antialias=antialias).round().clamp(0, 255)
    return resized.to(torch.uint8).transpose(0, 1)  # (T, C, H, W) -> (C, T, H, W)


def center_crop(clip: Tensor, crop_size: int) -> Tensor:
    """Crop the center of (..., h, w) to (..., crop_size, crop_size), in pixels."""
    cropped: Tensor = F.center_crop(clip, [crop_size, crop_size])
    return cropped


def normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale pixels to [0, 1] and standardize each channel.

    Call it on the training device: uint8 clips are a quarter of the bytes to send there.

    Args:
        clips: uint8 (N, C, T, H, W), RGB in [0, 255].
        mean, std: of each channel in [0, 1], as the architecture has them.

    Returns:
        float32 (N, C, T, H, W).
    """
    center = torch.tensor(mean, device=clips.device).view(1, -1, 1, 1, 1)
    scale = torch.tensor(std, device=clips.device).view(1, -1, 1, 1, 1)
    return (clips.float() / 255 - center) / scale
