"""Frame folders: which files are the frames of a clip, their order, pixels and digests.

Without PyTorch: `predict` and the served model read frames too.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_named_digests, file_digest
from k400tiny_lib.media.frame_names import FrameNames, choose_frames
from k400tiny_lib.media.frame_names import is_frame as is_frame

# OpenCV, torchvision and simplejpeg all wrap libjpeg-turbo and take the same time for a full
# frame (benchmarks/data_loading.py); OpenCV also decodes at a fraction of the size.
_FULL = cv2.IMREAD_COLOR_RGB
_BGR = {n: getattr(cv2, f"IMREAD_REDUCED_COLOR_{n}") for n in (2, 4, 8)}
# OpenCV has the reduced flags for gray and BGR only; replace the color bit by that of RGB.
FRACTIONS = {1: _FULL} | {n: (flag & ~cv2.IMREAD_COLOR) | _FULL for n, flag in _BGR.items()}


def list_frames(folder: Path) -> FrameNames:
    """The pictures of a folder: frames in natural order, and what else there is.

    Raises:
        OSError: if the folder cannot be listed.
    """
    with os.scandir(folder) as entries:
        return choose_frames(entry.name for entry in entries if is_frame(entry.name))


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip in natural order of their names; see `list_frames`, which raises alike.

    Every step that reads a clip has its frames from here, so that all agree about them.
    """
    return [folder / name for name in list_frames(folder).frames]


def clip_digest(folder: Path) -> str:
    """Digest of the names and bytes of a clip's frames."""
    return combine_named_digests({path.name: file_digest(path) for path in frame_files(folder)})


def read_images(folder: Path, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Decode some frames of a clip at their full size; a repeated one is decoded once.

    Args:
        folder: the clip's folder.
        indices: positions in the natural order of the frames.

    Returns:
        uint8 (T, H, W, 3), RGB in [0, 255], T = len(indices).

    Raises:
        UserError: if a frame is missing, unreadable or of another size than the first.
    """
    files = select_files(folder, indices)
    images = {index: decode_frame(path) for index, path in files.items()}
    for index, image in images.items():
        if image.shape != images[indices[0]].shape:
            raise mixed_sizes(files[index], files[indices[0]])
    return np.stack([images[index] for index in indices])


def select_files(folder: Path, indices: Sequence[int]) -> dict[int, Path]:
    """The files of some frames by position, each once.

    Raises:
        UserError: if the folder has too few frames.
    """
    files = frame_files(folder) if folder.is_dir() else []
    if not files or max(indices) >= len(files):
        raise UserError(
            f"data_path: {folder} has {len(files)} frames, the annotations need "
            f"{max(indices) + 1}. Run prepare_data again."
        )
    return {index: files[index] for index in dict.fromkeys(indices)}


def decode_frame(path: Path, fraction: int = 1) -> npt.NDArray[np.uint8]:
    """Decode one image file.

    Args:
        path: the file.
        fraction: 1, 2, 4 or 8, to decode a JPEG at 1/fraction of its size.

    Returns:
        uint8 (H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file is missing or no image; the message names it.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(encoded, FRACTIONS[fraction]) if encoded.size else None
    except OSError as error:
        raise UserError(f"data_path: {path} cannot be read: {error.strerror}.") from None
    except cv2.error:  # such as an image of more pixels than OpenCV decodes
        image = None
    if image is None:
        raise UserError(f"data_path: {path} is no image. Run prepare_data again, or mend the file.")
    return np.asarray(image, dtype=np.uint8)


def mixed_sizes(path: Path, first: Path) -> UserError:
    """The error for a clip whose frames differ in size."""
    images = decode_frame(path), decode_frame(first)
    size, usual = (f"{image.shape[1]}x{image.shape[0]}" for image in images)
    return UserError(
        f"data_path: {path} is {size}, other frames of the clip are {usual}. "
        "Needed: one size per clip."
    )
