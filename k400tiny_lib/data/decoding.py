"""From image files to pixels: which decoder, which files, at which size."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.sources import frame_files
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


def decode_frame(path: Path) -> npt.NDArray[np.uint8]:
    """Decode one image file at its full size.

    Returns:
        uint8 (H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file is missing or no image; the message names it.
    """
    return _decode(path, _read_bytes(path), 1)


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
    _require_one_size({files[index]: image.shape for index, image in images.items()})
    return torch.from_numpy(np.stack([images[index] for index in indices]))


@dataclass(frozen=True)
class ImageFiles:
    """Reads clips from their image files, decoding only the frames asked for.

    Attributes:
        data_path: directory of the clip folders.
        resize_size: short side of the frames handed out.
        scaled: decode JPEGs in the DCT domain at the smallest fraction (1/2, 1/4, 1/8) whose short
            side still is at least `resize_size`. It saves a third of the time and changes pixels
            slightly, so training alone does so: evaluation and the exported graph see full frames.
    """

    data_path: Path
    resize_size: int
    scaled: bool = False

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
        fraction = 0
        sizes: dict[Path, tuple[int, ...]] = {}
        images: dict[int, Tensor] = {}
        for index, path in files.items():
            encoded = _read_bytes(path)
            fraction = fraction or (_fraction(encoded, self.resize_size) if self.scaled else 1)
            frame = _decode(path, encoded, fraction)
            sizes[path] = frame.shape
            image = torch.from_numpy(frame).permute(2, 0, 1)[None]  # (H, W, C) -> (1, C, H, W)
            # One frame at a time stays in the processor's cache: stacking full frames first costs
            # more than it saves.
            images[index] = resize_short_side(image, self.resize_size)
        _require_one_size(sizes)
        return torch.cat([images[index] for index in indices])


def _select_files(folder: Path, indices: Sequence[int]) -> dict[int, Path]:
    files = frame_files(folder) if folder.is_dir() else []
    if not files or max(indices) >= len(files):
        raise UserError(
            f"data_path: {folder} has {len(files)} frames, the annotations need "
            f"{max(indices) + 1}. Run prepare_data again."
        )
    return {index: files[index] for index in dict.fromkeys(indices)}


def _read_bytes(path: Path) -> npt.NDArray[np.uint8]:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"data_path: {path} cannot be read: {error.strerror}.") from None


def _decode(path: Path, encoded: npt.NDArray[np.uint8], fraction: int) -> npt.NDArray[np.uint8]:
    try:
        image = cv2.imdecode(encoded, _FRACTIONS[fraction]) if encoded.size else None
    except cv2.error:  # such as more pixels than OpenCV is willing to decode
        image = None
    if image is None:
        raise UserError(f"data_path: {path} is no image. Run prepare_data again, or mend the file.")
    return np.asarray(image, dtype=np.uint8)


def _fraction(encoded: npt.NDArray[np.uint8], resize_size: int) -> int:
    """The largest denominator that leaves a JPEG's short side at least `resize_size`."""
    try:
        with Image.open(BytesIO(encoded.tobytes())) as image:  # reads the header only
            short = min(image.size) if image.format == "JPEG" else 0
    except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
        return 1  # decoding will say what is wrong
    return max((f for f in _FRACTIONS if short // f >= resize_size), default=1)


def _require_one_size(sizes: dict[Path, tuple[int, ...]]) -> None:
    first = next(iter(sizes.values()))
    for path, (height, width, *_) in sizes.items():
        if (height, width) != first[:2]:
            raise UserError(
                f"data_path: {path} is {width}x{height}, other frames of the clip are "
                f"{first[1]}x{first[0]}. Needed: one size per clip."
            )
