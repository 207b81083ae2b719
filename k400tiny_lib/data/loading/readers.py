"""Readers of clips from image files: which files, decoded at which size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.transforms import resize_short_side
from k400tiny_lib.media import frames

# Reads frames of a clip by their offsets in its segment: uint8 (T, 3, h, w), RGB in [0, 255],
# min(h, w) = resize_size. `ImageFiles` and `frame_cache.CachedFrames` are such readers. One with a
# true attribute `copies` only copies memory.
FrameReader = Callable[[Clip, Sequence[int]], Tensor]

_RESIZED_AT_ONCE = 8  # frames: few calls, yet little memory for large frames


def read_frames(folder: Path, indices: Sequence[int]) -> Tensor:
    """`media.frames.read_images` as a tensor: uint8 (T, H, W, 3), RGB. Raises the same errors."""
    return torch.from_numpy(frames.read_images(folder, indices))


@dataclass(frozen=True)
class ImageFiles:
    """Reads clips for training from their image files, decoding only the requested frames.

    JPEGs are decoded in the DCT domain at the smallest fraction (1/2, 1/4, 1/8) whose short side
    still is at least `resize_size`. It saves a third of the time and changes pixels by less than
    one level on average. That is more than evaluation and the exported graph may differ, so these
    decode whole frames (`read_frames`).

    Attributes:
        data_path: directory of the clip folders.
        resize_size: short side of the returned frames.
    """

    data_path: Path
    resize_size: int

    def __call__(self, clip: Clip, offsets: Sequence[int]) -> Tensor:
        """Read frames of a clip by their offsets in its segment.

        Returns:
            uint8 (T, 3, h, w), RGB in [0, 255], T = len(offsets), min(h, w) = resize_size.

        Raises:
            UserError: if a frame is missing, unreadable or of another size than the first.
        """
        indices = [clip.segment[0] + offset for offset in offsets]
        files = frames.select_files(self.data_path / clip.video, indices)
        decoded = _decode_alike(list(files.values()), self.resize_size)
        parts = []
        while chunk := list(islice(decoded, _RESIZED_AT_ONCE)):
            images = torch.from_numpy(np.stack(chunk)).permute(0, 3, 1, 2)  # (T, C, H, W)
            parts.append(resize_short_side(images, self.resize_size))
        resized = torch.cat(parts)
        if len(files) == len(indices):
            return resized
        row = {index: number for number, index in enumerate(files)}
        return resized[[row[index] for index in indices]]


def _decode_alike(paths: Sequence[Path], resize_size: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Decode frames of a clip at the fraction that fits the first; all must have one size."""
    fraction = _fraction(paths[0], resize_size)
    shape: tuple[int, ...] | None = None
    for path in paths:
        frame = frames.decode_frame(path, fraction)
        shape = shape or frame.shape
        if frame.shape != shape:
            raise frames.mixed_sizes(path, paths[0])
        yield frame


def _fraction(path: Path, resize_size: int) -> int:
    """The largest denominator that leaves a JPEG's short side at least `resize_size`."""
    try:
        with Image.open(path) as image:  # reads the header only
            # MPO is a JPEG with further pictures behind the first.
            short = min(image.size) if image.format in ("JPEG", "MPO") else 0
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return 1  # decoding reports what is wrong
    return max((f for f in frames.FRACTIONS if short // f >= resize_size), default=1)
