"""From image files to pixels: which decoder, which files, at which size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.transforms import resize_short_side
from k400tiny_lib.media.frames import FRACTIONS, decode_at, mixed_sizes, read_images, select_files

_RESIZED_AT_ONCE = 8  # frames: few calls, and little memory where frames are large


def read_frames(folder: Path, indices: Sequence[int]) -> Tensor:
    """`images.read_images` as a tensor, uint8 (T, H, W, 3), RGB; it raises the same UserError."""
    return torch.from_numpy(read_images(folder, indices))


@dataclass(frozen=True)
class ImageFiles:
    """Reads clips for training from their image files, decoding only the frames asked for.

    JPEGs are decoded in the DCT domain at the smallest fraction (1/2, 1/4, 1/8) whose short side
    still is at least `resize_size`. It saves a third of the time and moves pixels by less than a
    grey level on average, but by more than evaluation and the exported graph may differ: these
    take whole frames (`read_frames`).

    Attributes:
        data_path: directory of the clip folders.
        resize_size: short side of the frames handed out.
    """

    data_path: Path
    resize_size: int

    def __call__(self, clip: Clip, offsets: Sequence[int]) -> Tensor:
        """Read frames of a clip.

        Args:
            clip: whose frames.
            offsets: positions within the clip's segment.

        Returns:
            uint8 (T, 3, h, w), RGB in [0, 255], T = len(offsets), min(h, w) = resize_size.

        Raises:
            UserError: if a frame is missing, unreadable or of another size than the first.
        """
        indices = [clip.segment[0] + offset for offset in offsets]
        files = select_files(self.data_path / clip.video, indices)
        paths = list(files.values())
        fraction = _fraction(paths[0], self.resize_size)
        parts: list[Tensor] = []
        shape: tuple[int, ...] = ()
        for start in range(0, len(paths), _RESIZED_AT_ONCE):
            some = paths[start : start + _RESIZED_AT_ONCE]
            for place, path in enumerate(some):
                frame = decode_at(path, fraction)
                shape = shape or frame.shape
                if frame.shape != shape:
                    raise mixed_sizes(path, paths[0])
                if not place:
                    frames = np.empty((len(some), *shape), np.uint8)
                # Copied while it is in the processor's cache; its memory takes the next frame.
                frames[place] = frame
            images = torch.from_numpy(frames).permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
            parts.append(resize_short_side(images, self.resize_size))
        unique = torch.cat(parts)
        if len(paths) == len(indices):
            return unique
        places = {index: place for place, index in enumerate(files)}
        return unique[[places[index] for index in indices]]


def _fraction(path: Path, resize_size: int) -> int:
    """The largest denominator that leaves a JPEG's short side at least `resize_size`."""
    try:
        with Image.open(path) as image:  # reads the header only
            short = min(image.size) if image.format == "JPEG" else 0
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return 1  # decoding will say what is wrong
    return max((f for f in FRACTIONS if short // f >= resize_size), default=1)
