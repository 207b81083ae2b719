"""References for frames: how training sees them, and the digest of a directory of clips."""

from pathlib import Path

from torch import Tensor

from k400tiny_lib.data.loading.transforms import center_crop, resize_short_side
from k400tiny_lib.files import combine_named_digests
from k400tiny_lib.media.frames import clip_digest


def resize_and_crop(frames: Tensor, resize_size: int, crop_size: int) -> Tensor:
    """uint8 (T, H, W, C) -> (C, T, crop_size, crop_size)."""
    images = frames.permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
    images = center_crop(resize_short_side(images, resize_size), crop_size)
    return images.transpose(0, 1)  # (T, C, H, W) -> (C, T, H, W)


def data_digest(data_path: Path) -> str:
    """Digest of the clip folders in a directory: their names, frame names and bytes."""
    return combine_named_digests({clip.name: clip_digest(clip) for clip in data_path.iterdir()})
