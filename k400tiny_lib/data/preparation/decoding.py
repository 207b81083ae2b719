"""Videos become frame folders: 40 frames each, like the clips of K400-Tiny.

A folder appears under its name when it is complete, with the digest of its video in a hidden file;
one whose video is the same is not decoded again. So a killed run goes on where it was, and leaves
nothing half-written.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from tqdm import tqdm

from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.data.sources.ground_truth import Dropped
from k400tiny_lib.data.sources.video_files import VideoFile
from k400tiny_lib.files import combine_digests, fetch_file, file_digest, is_remote

if TYPE_CHECKING:
    from k400tiny_lib.data.preparation.video_frames import Decoded

_SOURCE = ".source"  # in a finished folder: the digest of its video
_ROOT = "video"  # of the facts about videos in the index


@dataclass(frozen=True)
class FrameSettings:
    """What decoding makes of a video; the defaults are the layout of K400-Tiny."""

    num_frames: int = 40
    size: int = 336
    quality: int = 90

    @property
    def digest(self) -> str:
        """Eight hex digits that differ between settings."""
        return combine_digests([json.dumps(asdict(self), sort_keys=True)])[:8]


@dataclass(frozen=True)
class Task:
    """One video to decode: plain data, for whichever machine takes it."""

    name: str
    uri: str
    stamp: str
    settings: FrameSettings


def video_digests(videos: Mapping[str, VideoFile], index: ContentIndex) -> dict[str, str]:
    """The digest of each video's bytes by clip name, read only where the index does not know it."""
    known = index.load(_ROOT)
    digests = {}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, video in videos.items():
            signature, fact = known.get(video.uri, ("", ""))
            if signature == video.stamp:
                digests[name] = json.loads(fact)[0]
                continue
            path = Path(video.uri)
            try:
                if is_remote(video.uri):
                    path = Path(folder, "video")
                    fetch_file(video.uri, path)
                digests[name] = file_digest(path)
            except OSError:  # decoding says what is wrong with it
                digests[name] = ""
                continue
            # It may be a new file with an old one's place: whether it can be decoded is open.
            rows.append((video.uri, video.stamp, json.dumps([digests[name], None])))
    if rows:
        index.save(_ROOT, rows)
    return digests


def plan(
    videos: Mapping[str, VideoFile], target: Path, settings: FrameSettings, index: ContentIndex
) -> tuple[list[Task], list[Dropped]]:
    """What is still to be decoded, and the videos that are known to be bad."""
    sources = {name: _source_of(target / name) for name in videos}
    digests = video_digests({name: videos[name] for name in videos if sources[name]}, index)
    known = index.load(_ROOT)
    tasks, bad = [], []
    for name, video in videos.items():
        if sources[name] and sources[name] == digests[name]:
            continue
        stamp, fact = known.get(video.uri, ("", ""))
        problem = json.loads(fact)[1] if stamp == video.stamp else None
        if problem:
            bad.append(Dropped(name, problem))
        else:
            tasks.append(Task(name, video.uri, video.stamp, settings))
    return tasks, bad


def decode_videos(
    videos: Mapping[str, VideoFile],
    target: Path,
    index: ContentIndex,
    *,
    scheduler: str,
    workers: int | str,
    settings: FrameSettings,
) -> list[Dropped]:
    """Make a frame folder of every video that has none yet.

    The workers only decode; this process writes. So they need to see the videos, not the target.

    Args:
        videos: the video of each clip.
        target: directory of the frame folders, named like the clips.
        index: which videos are known; what is found out goes there.
        scheduler, workers: see `open_executor`.
        settings: what frames to make.

    Returns:
        The videos that cannot be decoded.

    Raises:
        UserError: if the workers cannot be used.
    """
    # Here, because main looks at the plan each time and should not wait for PyTorch.
    from k400tiny_lib.data.preparation.video_frames import decode

    target.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    tasks, bad = plan(videos, target, settings, index)
    if not tasks:
        return bad
    with (
        open_executor(scheduler, workers) as (executor, count),
        tqdm(total=len(tasks), desc="decode", unit="video", mininterval=1) as bar,
    ):
        for task, decoded in map_unordered(executor, count, decode, tasks):
            if decoded.problem:
                bad.append(Dropped(task.name, decoded.problem))
                shutil.rmtree(target / task.name, ignore_errors=True)
            else:
                _write_folder(target, task.name, decoded)
            if decoded.digest:  # else it could not even be read, which may pass
                fact = json.dumps([decoded.digest, decoded.problem])
                index.save(_ROOT, [(task.uri, task.stamp, fact)])
            bar.update()
    return sorted(bad, key=lambda clip: clip.video)


def _source_of(folder: Path) -> str:
    try:
        return (folder / _SOURCE).read_text()
    except OSError:
        return ""


def _write_folder(target: Path, name: str, decoded: "Decoded") -> None:
    folder = target / name
    partial = target / f".part-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digits = max(2, len(str(len(decoded.frames) - 1)))
    for number, frame in enumerate(decoded.frames):
        (partial / f"frame{number:0{digits}d}.jpg").write_bytes(frame)
    (partial / _SOURCE).write_text(decoded.digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # of a video that has changed since
    partial.rename(folder)


def _remove_leftovers(target: Path) -> None:
    """What a killed run was writing; that of a living one, in the same directory, stays."""
    for partial in target.glob(".part-*"):
        if not psutil.pid_exists(int(partial.name.rpartition("-")[2])):
            shutil.rmtree(partial, ignore_errors=True)
