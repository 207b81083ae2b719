"""Frame folders: which files are the frames of a clip, their order, pixels and digests.

Without PyTorch: `predict` and the served model read frames too.
"""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_named_digests, file_digest

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
_DIGITS = re.compile(r"(\d+)")
# OpenCV, torchvision and simplejpeg all wrap libjpeg-turbo and take the same time for a full
# frame (benchmarks/data_loading.py); OpenCV also decodes at a fraction of the size.
_FULL = cv2.IMREAD_COLOR_RGB
# OpenCV names the reduced flags for gray and BGR only; replace the color bit by that of RGB.
FRACTIONS = {
    1: _FULL,
    2: (cv2.IMREAD_REDUCED_COLOR_2 & ~cv2.IMREAD_COLOR) | _FULL,
    4: (cv2.IMREAD_REDUCED_COLOR_4 & ~cv2.IMREAD_COLOR) | _FULL,
    8: (cv2.IMREAD_REDUCED_COLOR_8 & ~cv2.IMREAD_COLOR) | _FULL,
}


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sort key that puts frame2 before frame10."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def frame_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """Sort key of frame names: natural order, ties such as frame1 and frame01 by the name."""
    return natural_key(name), name


def is_frame(name: str) -> bool:
    """Whether a file name is that of a frame; hidden files are none."""
    return name.lower().endswith(FRAME_SUFFIXES) and not name.startswith(".")


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip in natural order of their names.

    Raises:
        OSError: if the folder cannot be listed.
    """
    return sorted(
        (path for path in folder.iterdir() if is_frame(path.name)),
        key=lambda path: frame_order(path.name),
    )


def clip_digest(folder: Path) -> str:
    """Digest of the names and bytes of a clip's frames."""
    return combine_named_digests({path.name: file_digest(path) for path in frame_files(folder)})


def data_digest(data_path: Path) -> str:
    """Digest of all clips below a directory: folder names, frame names, bytes.

    Clips are in the directory itself or one folder deeper, as `class/clip`. If no clip is dropped,
    prepare_data writes the same digest into the annotations.
    """
    folders = [path for path in data_path.glob("*") if _is_folder(path)]
    nested = [path for folder in folders for path in folder.glob("*") if _is_folder(path)]
    clips = {path.relative_to(data_path).as_posix(): path for path in [*folders, *nested]}
    clips = {name: path for name, path in clips.items() if _has_frames(path)}
    with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
        return combine_named_digests(
            dict(zip(clips, pool.map(clip_digest, clips.values()), strict=True))
        )


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _has_frames(folder: Path) -> bool:
    return any(is_frame(path.name) for path in folder.iterdir())


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


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"data_path: {path} cannot be read: {error.strerror}.") from None


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
    encoded = np.frombuffer(_read_bytes(path), np.uint8)
    try:
        image = cv2.imdecode(encoded, FRACTIONS[fraction]) if encoded.size else None
    except cv2.error:  # such as an image of more pixels than OpenCV decodes
        image = None
    if image is None:
        raise UserError(f"data_path: {path} is no image. Run prepare_data again, or mend the file.")
    return np.asarray(image, dtype=np.uint8)


def mixed_sizes(path: Path, first: Path) -> UserError:
    """The error for a clip whose frames differ in size."""
    (height, width, _), (usual_height, usual_width, _) = (
        decode_frame(file).shape for file in (path, first)
    )
    return UserError(
        f"data_path: {path} is {width}x{height}, other frames of the clip are "
        f"{usual_width}x{usual_height}. Needed: one size per clip."
    )
