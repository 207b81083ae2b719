"""The video files below a directory, local or remote."""

import os
from dataclasses import dataclass
from pathlib import Path

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import is_remote, list_files, local_path
from k400tiny_lib.media.video import is_video


@dataclass(frozen=True)
class VideoFile:
    """One video.

    Attributes:
        uri: where it is: an absolute path or a URI, readable from every worker.
        stamp: a text that changes when the file does (size, time, inode or entity tag).
    """

    uri: str
    stamp: str


def list_videos(data_path: str) -> dict[str, VideoFile]:
    """All videos below a directory by relative path, sorted.

    Raises:
        UserError: if there is no such directory.
    """
    if is_remote(data_path):
        base = data_path.rstrip("/")
        stamps = list_files(base, "data_path")
        return {
            name: VideoFile(f"{base}/{name}", stamp)
            for name, stamp in stamps.items()
            if is_video(name)
        }
    root = local_path(data_path)
    if not root.is_dir():
        raise UserError(f"data_path: {data_path} is not a directory. Needed: one with videos.")
    found = {}
    for folder, _, names in os.walk(root):
        for name in filter(is_video, names):
            path = Path(folder, name)
            try:
                stat = path.stat()
            except OSError:  # a link to nowhere
                continue
            stamp = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"
            relative = path.relative_to(root).as_posix()
            found[relative] = VideoFile(str(path), stamp)
    return dict(sorted(found.items()))
