"""The image files that a frame cache was made from, to notice that they have changed since.

Names, sizes and times of all frames are compared first. Only where they differ are the files read:
a copy of the same frames is no change.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import atomic_write, combine_digests, combine_named_digests
from k400tiny_lib.media.frames import clip_digest, frame_files

FILE = "frames.json"


def content_digests(annotations: Annotations, data_path: Path) -> dict[str, str]:
    """The digest of the frames of each clip folder, by its name; reads all of them.

    Raises:
        UserError: if a folder cannot be read.
    """
    videos = _videos(annotations)
    try:
        with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
            digests = pool.map(lambda video: clip_digest(data_path / video), videos)
            return dict(zip(videos, digests, strict=True))
    except OSError as error:
        raise UserError(f"data_path: {error.filename} cannot be read: {error.strerror}.") from None


def note(folder: Path, annotations: Annotations, data_path: Path) -> None:
    """Write the origins of a cache before its first file; a cache that has them keeps them."""
    if not _read(folder):
        # The stamp first: frames that change in between will look changed.
        stamp = _stamp(annotations, data_path)
        digests = content_digests(annotations, data_path)
        _write(folder, {"digests": digests, "stamps": {str(data_path.absolute()): stamp}})


def changed_clips(folder: Path, annotations: Annotations, data_path: Path) -> list[str]:
    """The clip folders whose frames are not those that a cache was made from; none without one."""
    origins = _read(folder)
    if not origins:
        return []
    root, stamp = str(data_path.absolute()), _stamp(annotations, data_path)
    if origins["stamps"].get(root) == stamp:
        return []
    digests, before = content_digests(annotations, data_path), origins["digests"]
    changed = [video for video, digest in digests.items() if before.get(video) != digest]
    if not changed:
        origins["stamps"][root] = stamp
        with suppress(OSError):  # another user's cache; the frames are read again next time
            _write(folder, origins)
    return changed


def present_content(folder: Path, annotations: Annotations, data_path: Path) -> str:
    """One digest of the frames as they are now, noted in a folder.

    They are read only if their names, sizes or times are not those that were noted.

    Raises:
        UserError: if a clip folder cannot be read.
        OSError: if the folder cannot be written to.
    """
    root, stamp = str(data_path.absolute()), _stamp(annotations, data_path)
    noted = _read(folder)
    if not noted or noted["stamps"].get(root) != stamp:
        digests = content_digests(annotations, data_path)
        same = noted and noted["digests"] == digests
        stamps = (noted["stamps"] if same else {}) | {root: stamp}
        noted = {"digests": digests, "stamps": stamps}
        _write(folder, noted)
    return combine_named_digests(noted["digests"])


def _videos(annotations: Annotations) -> list[str]:
    return sorted({clip.video for clip in annotations.clips})


def _stamp(annotations: Annotations, data_path: Path) -> str:
    """Names, sizes and times of all frames as a digest."""
    parts = []
    for video in _videos(annotations):
        with suppress(OSError):  # reading the clip says what is wrong
            for path in frame_files(data_path / video):
                stat = path.stat()
                parts.append(f"{video}/{path.name} {stat.st_size} {stat.st_mtime_ns}")
    return combine_digests(parts)


def _read(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError):
        return {}


def _write(folder: Path, origins: dict[str, Any]) -> None:
    with atomic_write(folder / FILE) as part:
        part.write_text(json.dumps(origins))
