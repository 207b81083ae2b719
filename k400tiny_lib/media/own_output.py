"""Directories that the pipeline writes, and how they are recognized when data lies next to them.

`data_path` may be the directory that `output_dir` names, or contain it. Then decoded frames and
the rendered sample must not be taken for classes or clips.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from k400tiny_lib.files import cannot_write

MARK = ".made_by_k400tiny"
# Both the name and the mark or the content decide: a renamed directory belongs to the user, and
# so does a class folder `frames-20240101`.
_NAME = re.compile(r"frames-[0-9a-f]{8}|sample-v\d+-seed\d+")
_TRACKING = ("mlruns", "mlartifacts")
_CHECKPOINTS = "checkpoints"
_CONTENT = {MARK, ".source", "k400tiny_images", "k400tiny_ground_truth.csv"}
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
        raise cannot_write("output_dir", folder, error) from None


def is_own(name: str, files: Iterable[str]) -> bool:
    """Whether the pipeline made a directory, also before such directories had a mark.

    Args:
        name: of the directory.
        files: paths of the files in it, relative to it. Those of a bucket lack the hidden ones,
            which are not uploaded.
    """
    if name in _TRACKING:
        return True
    if name == _CHECKPOINTS:
        return any(path.endswith(".pt") for path in files)
    if not _NAME.fullmatch(name):
        return False
    clips = defaultdict[str, list[str]](list)
    for path in files:
        if not _CONTENT.isdisjoint(path.split("/")):
            return True
        folder, _, leaf = path.rpartition("/")
        clips[folder].append(leaf)
    is_date = name.removeprefix("frames-").isdigit()
    are_ours = [sorted(names) == _UPLOADED_FRAMES for names in clips.values()]
    return not is_date and bool(are_ours) and all(are_ours)
