"""What is done to the pixels of every clip: resize, crop, normalise."""

import torch
from torch import Tensor
from torchvision.models.video import R2Plus1D_18_Weights
from torchvision.transforms.v2 import functional as F

# Mean and standard deviation of Kinetics-400 for RGB in [0, 1], as torchvision's weights state.
_PRESET = R2Plus1D_18_Weights.KINETICS400_V1.transforms()
MEAN: tuple[float, ...] = tuple(_PRESET.mean)
STD: tuple[float, ...] = tuple(_PRESET.std)


def resize_short_side(images: Tensor, resize_size: int) -> Tensor:
    """Resize so that the short side has a given length, bilinear with antialiasing.

    Args:
        images: uint8 (T, C, H, W), RGB in [0, 255].
        resize_size: short side after resizing, in pixels.

    Returns:
        uint8 (T, C, h, w), min(h, w) = resize_size.
    """
    resized: Tensor = F.resize(images, [resize_size], antialias=True)
    return resized


def centre_crop(images: Tensor, crop_size: int) -> Tensor:
    """The central square of images, (T, C, H, W) to (T, C, crop_size, crop_size)."""
    cropped: Tensor = F.center_crop(images, [crop_size, crop_size])
    return cropped


def resize_and_crop(frames: Tensor, resize_size: int, crop_size: int) -> Tensor:
    """Resize the short side and crop the centre: what evaluation does to whole frames.

    Args:
        frames: uint8 (T, H, W, C), RGB in [0, 255].
        resize_size: short side after resizing, in pixels.
        crop_size: side of the square crop, in pixels, at most resize_size.

    Returns:
        uint8 (C, T, crop_size, crop_size).
    """
    images = frames.permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
    images = centre_crop(resize_short_side(images, resize_size), crop_size)
    return images.transpose(0, 1)  # (T, C, H, W) -> (C, T, H, W)


def normalise(clips: Tensor) -> Tensor:
    """Turn pixels into what the network was designed for: zero mean, unit variance per channel.

    It runs on the device of the clips: uint8 is a quarter of the bytes to send there.

    Args:
        clips: uint8 (N, C, T, H, W), RGB in [0, 255].

    Returns:
        float32 (N, C, T, H, W).
    """
    mean = torch.tensor(MEAN, device=clips.device).view(1, -1, 1, 1, 1)
    std = torch.tensor(STD, device=clips.device).view(1, -1, 1, 1, 1)
    return (clips.float() / 255 - mean) / std
