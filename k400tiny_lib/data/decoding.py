"""From image files to pixels: which decoder, which files, at which size."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.frames import frame_files
from k400tiny_lib.data.transforms import resize_short_side
from k400tiny_lib.errors import UserError

# OpenCV, torchvision and simplejpeg all wrap libjpeg-turbo and take the same time for a full
# frame (benchmarks/data_loading.py); OpenCV also decodes at a fraction of the size.
_FULL = cv2.IMREAD_COLOR_RGB
# OpenCV has a flag for each fraction in BGR only: grey bit off, BGR bit off, RGB bit on.
_FRACTIONS = {
    1: _FULL,
    2: (cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR) | _FULL,
    4: (cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR) | _FULL,
    8: (cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR) | _FULL,
}
_RESIZED_AT_ONCE = 8  # frames: few calls, and little memory where frames are large


def decode_frame(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one image file at its full size.

    Returns:
        uint8 (H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file is missing or no image; the message names it.
    """
    return _decode(path)


def read_frames(folder: Path, indices: Sequence[int]) -> Tensor:
    """Decode some frames of a clip at their full size; one that occurs twice is decoded once.

    Args:
        folder: the clip's folder.
        indices: positions in the natural order of the frames.

    Returns:
        uint8 (T, H, W, 3), RGB in [0, 255], T = len(indices).

    Raises:
        UserError: if a frame is missing, unreadable or of another size than the first.
    """
    files = _select_files(folder, indices)
    images = {index: decode_frame(path) for index, path in files.items()}
    for index, image in images.items():
        if image.shape != images[indices[0]].shape:
            raise _mixed_sizes(files[index], files[indices[0]])
    return torch.from_numpy(np.stack([images[index] for index in indices]))


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
        files = _select_files(self.data_path / clip.video, indices)
        paths = list(files.values())
        fraction = _fraction(paths[0], self.resize_size)
        parts: list[Tensor] = []
        shape: tuple[int, ...] = ()
        for start in range(0, len(paths), _RESIZED_AT_ONCE):
            some = paths[start : start + _RESIZED_AT_ONCE]
            for place, path in enumerate(some):
                frame = _decode(path, fraction)
                shape = shape or frame.shape
                if frame.shape != shape:
                    raise _mixed_sizes(path, paths[0])
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


def _select_files(folder: Path, indices: Sequence[int]) -> dict[int, Path]:
    files = frame_files(folder) if folder.is_dir() else []
    if not files or max(indices) >= len(files):
        raise UserError(
            f"data_path: {folder} has {len(files)} frames, the annotations need "
            f"{max(indices) + 1}. Run prepare_data again."
        )
    return {index: files[index] for index in dict.fromkeys(indices)}


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"data_path: {path} cannot be read: {error.strerror}.") from None


def _decode(path: Path, fraction: int = 1) -> npt.NDArray[np.uint8]:
    encoded = np.frombuffer(_read_bytes(path), np.uint8)
    try:
        image = cv2.imdecode(encoded, _FRACTIONS[fraction]) if encoded.size else None
    except cv2.error:  # such as more pixels than OpenCV is willing to decode
        image = None
    if image is None:
        raise UserError(f"data_path: {path} is no image. Run prepare_data again, or mend the file.")
    return np.asarray(image, dtype=np.uint8)


def _fraction(path: Path, resize_size: int) -> int:
    """The largest denominator that leaves a JPEG's short side at least `resize_size`."""
    try:
        with Image.open(path) as image:  # reads the header only
            short = min(image.size) if image.format == "JPEG" else 0
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return 1  # decoding will say what is wrong
    return max((f for f in _FRACTIONS if short // f >= resize_size), default=1)


def _mixed_sizes(path: Path, first: Path) -> UserError:
    (height, width, _), (usual_height, usual_width, _) = (
        decode_frame(file).shape for file in (path, first)
    )
    return UserError(
        f"data_path: {path} is {width}x{height}, other frames of the clip are "
        f"{usual_width}x{usual_height}. Needed: one size per clip."
    )
