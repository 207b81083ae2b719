"""The frames of a clip: which files they are, and in which order."""

import re
from pathlib import Path

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
_DIGITS = re.compile(r"(\d+)")


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sort key that puts frame2 before frame10."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def frame_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """Natural order, and one order for names like frame1 and frame01 too."""
    return natural_key(name), name


def is_frame(name: str) -> bool:
    """Whether a file name is that of a frame; hidden files are not."""
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
