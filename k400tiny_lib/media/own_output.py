"""Directories that the pipeline writes, and how they are recognized when data lies next to them.

`data_path` may be the directory that `output_dir` names, or contain it. Then decoded frames and
the rendered sample must not be taken for classes or clips.
"""

import os
import posixpath
import re
from collections.abc import Collection
from pathlib import Path

from k400tiny_lib.errors import UserError

MARK = ".made_by_k400tiny"
# Both the name and the mark or the content decide: a renamed directory belongs to the user, and
# so does a class folder `frames-20240101`.
_NAME = re.compile(r"frames-[0-9a-f]{8}|sample-v\d+-seed\d+")
_TRACKING = ("mlruns", "mlartifacts")
_CHECKPOINTS = "checkpoints"
_OF_SAMPLE = ("k400tiny_images", "k400tiny_ground_truth.csv")
_OF_DECODED_CLIP = ".source"
_UPLOADED_FRAMES = [f"frame{number:02d}.jpg" for number in range(40)]


def mark(folder: Path) -> None:
    """Make a directory and mark it as one of ours.

    Raises:
        UserError: if it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except OSError as error:
        raise UserError(f"output_dir: {folder} cannot be made: {error.strerror}.") from None


def has_own_name(name: str) -> bool:
    """Whether a directory may be one of ours, to judge by its name."""
    return bool(_NAME.fullmatch(name)) or name in (*_TRACKING, _CHECKPOINTS)


def is_own(folder: Path) -> bool:
    """Whether the pipeline made a local directory, also before such directories had a mark."""
    name = folder.name
    if not has_own_name(name):
        return False
    if name in _TRACKING:
        return True
    if name == _CHECKPOINTS:
        return any(folder.glob("*.pt")) or any(folder.glob("*/*.pt"))
    if (folder / MARK).exists() or any((folder / part).exists() for part in _OF_SAMPLE):
        return True
    return any(_OF_DECODED_CLIP in files for _, _, files in os.walk(folder))


def is_own_upload(name: str, paths: Collection[str]) -> bool:
    """The same for a directory of a bucket, to which hidden files are not sent.

    Args:
        name: of the directory.
        paths: of the files in it.
    """
    if not has_own_name(name):
        return False
    if name in _TRACKING:
        return True
    if name == _CHECKPOINTS:
        return any(path.endswith(".pt") for path in paths)
    if name.startswith("sample-"):
        return any(part in path.split("/") for path in paths for part in _OF_SAMPLE)
    names: dict[str, list[str]] = {}
    for path in paths:
        names.setdefault(posixpath.dirname(path), []).append(posixpath.basename(path))
    is_date = name.removeprefix("frames-").isdigit()
    return not is_date and all(sorted(n) == _UPLOADED_FRAMES for n in names.values())
