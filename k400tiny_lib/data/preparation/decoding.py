"""Decode videos into frame folders of 40 frames each, like the clips of K400-Tiny.

A folder gets its name when it is complete, and has the digest of its video in a hidden file. While
the video is the same, it is not decoded again. So a killed run continues where it was, and leaves
no incomplete folder.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import psutil
from tqdm import tqdm

from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_digests, fetch_file, file_digest, is_remote
from k400tiny_lib.media.video import Image, sample_video

_DIGEST_FILE = ".source"  # in a finished folder: the digest of its video
_INDEX_ROOT = "video"  # of the content index: video URI -> [digest, problem]
_RESIZING = "k400tiny_lib.data.loading.transforms"  # imports torch, which takes seconds


@dataclass(frozen=True)
class FrameSettings:
    """The frames that a video is decoded into; the defaults are the layout of K400-Tiny."""

    num_frames: int = 40
    size: int = 336
    quality: int = 90

    @property
    def digest(self) -> str:
        """Eight hex digits that differ between settings."""
        return combine_digests([json.dumps(asdict(self), sort_keys=True)])[:8]


class VideoFile(NamedTuple):
    """One video."""

    uri: str  # or an absolute path, readable from every worker
    stamp: str  # changes when the file does (size, time, inode or entity tag)


class Task(NamedTuple):
    """One clip to decode: plain data that can be sent to another machine."""

    name: str
    video: VideoFile
    settings: FrameSettings


class Decoded(NamedTuple):
    """A decoded video."""

    digest: str  # of the file; empty if it cannot be read
    frames: Sequence[bytes] = ()  # JPEG files in order of time; none if the video is bad
    problem: str = ""  # why the video is bad


def digest_videos(videos: Mapping[str, VideoFile], index: ContentIndex) -> dict[str, str]:
    """Digest the bytes of each clip's video; unchanged videos are not read again.

    Returns:
        Clip name -> digest, empty for a video that cannot be read.
    """
    known = _load(index)
    digests, rows = {}, []
    for name, video in videos.items():
        if video in known:
            digests[name], _ = known[video]
            continue
        try:
            with _local_file(video.uri) as path:
                digests[name] = file_digest(path)
        except OSError:  # decoding reports what is wrong with it
            digests[name] = ""
        else:
            rows.append(_index_row(video, digests[name], None))  # not decoded yet
    if rows:
        index.save(_INDEX_ROOT, rows)
    return digests


def plan(
    videos: Mapping[str, VideoFile], target: Path, settings: FrameSettings, index: ContentIndex
) -> tuple[list[Task], dict[str, str]]:
    """Find out what has to be decoded.

    Returns:
        A task for each clip without an up-to-date folder, and the clips whose videos are known to
        be bad: name -> reason.
    """
    decoded = {name: digest for name in videos if (digest := _decoded_digest(target / name))}
    digests = digest_videos({name: videos[name] for name in decoded}, index)
    known = _load(index)
    tasks, bad = [], {}
    for name, video in videos.items():
        if name in decoded and decoded[name] == digests[name]:
            continue
        _, problem = known.get(video, ("", None))
        if problem:
            bad[name] = problem
        else:
            tasks.append(Task(name, video, settings))
    return tasks, bad


def decode_videos(
    videos: Mapping[str, VideoFile],
    target: Path,
    settings: FrameSettings,
    index: ContentIndex,
    *,
    scheduler: str,
    workers: int | str,
) -> dict[str, str]:
    """Make a frame folder below `target` of every clip's video that has none yet.

    Workers decode and this process writes, so they need to read the videos, but not the target.
    Their number and their scheduler are those of `open_executor`; the index receives the results.

    Returns:
        The clips whose videos cannot be decoded: name -> reason.

    Raises:
        UserError: if the workers cannot be used.
    """
    target.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(target)
    tasks, bad = plan(videos, target, settings, index)
    if not tasks:
        return bad
    with open_executor(scheduler, workers, preload=(__name__, _RESIZING)) as (executor, count):
        results = map_unordered(executor, count, decode, tasks)
        for task, decoded in tqdm(results, "decode", len(tasks), unit="video", mininterval=1):
            if decoded.problem:
                bad[task.name] = decoded.problem
                shutil.rmtree(target / task.name, ignore_errors=True)
            else:
                _write_folder(target, task.name, decoded)
            if decoded.digest:  # else it could not be read, which may be temporary
                row = _index_row(task.video, decoded.digest, decoded.problem)
                index.save(_INDEX_ROOT, [row])
    return bad


def decode(task: Task) -> Decoded:
    """Decode one video into JPEG frames: short side and center crop as the settings say.

    The same video and settings give the same bytes on every worker. What is wrong with a video is
    part of the result.
    """
    import torch  # only here and in _jpeg: main plans without waiting for it

    torch.set_num_threads(1)  # there is one worker per core
    settings, path, digest = task.settings, Path(task.video.uri), ""
    try:
        with _local_file(task.video.uri) as path:
            digest = file_digest(path)
            frames = sample_video(path, settings.num_frames, lambda image: _jpeg(image, settings))
    except UserError as error:
        return Decoded(digest, problem=str(error).replace(f"{path} ", "").rstrip("."))
    except OSError as error:
        return Decoded(digest, problem=f"cannot be read: {error.strerror or error}")
    return Decoded(digest, frames)


def _jpeg(image: Image, settings: FrameSettings) -> bytes:
    import torch

    from k400tiny_lib.data.loading.transforms import resize_and_crop

    frames = torch.from_numpy(image)[None]  # (H, W, C) -> (1, H, W, C)
    resized = resize_and_crop(frames, settings.size, settings.size)  # (C, 1, S, S)
    bgr = resized[:, 0].flip(0).permute(1, 2, 0).contiguous().numpy()  # (C, S, S) -> (S, S, C)
    _, jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
    return bytes(jpeg.tobytes())


@contextmanager
def _local_file(uri: str) -> Iterator[Path]:
    """A video as a local file; a remote one is copied and deleted afterwards."""
    if not is_remote(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        fetch_file(uri, path)
        yield path


def _load(index: ContentIndex) -> dict[VideoFile, tuple[str, str | None]]:
    """Video, as it is in the index -> its digest, and what is wrong with it (None: not decoded)."""
    rows = index.load(_INDEX_ROOT).items()
    # Without a stamp nothing tells whether the video is still the same.
    return {VideoFile(uri, stamp): json.loads(fact) for uri, (stamp, fact) in rows if stamp}


def _index_row(video: VideoFile, digest: str, problem: str | None) -> tuple[str, str, str]:
    return video.uri, video.stamp, json.dumps([digest, problem])


def _decoded_digest(folder: Path) -> str:
    """The digest of the video that a folder was decoded from; empty without a finished folder."""
    try:
        return (folder / _DIGEST_FILE).read_text()
    except OSError:
        return ""


def _write_folder(target: Path, name: str, decoded: Decoded) -> None:
    folder = target / name
    partial = target / f".part-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    digits = max(2, len(str(len(decoded.frames) - 1)))
    for number, frame in enumerate(decoded.frames):
        (partial / f"frame{number:0{digits}d}.jpg").write_bytes(frame)
    (partial / _DIGEST_FILE).write_text(decoded.digest)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(folder, ignore_errors=True)  # decoded from a former version of the video
    partial.rename(folder)


def _remove_leftovers(target: Path) -> None:
    """Remove the incomplete folder of a killed run, but not that of another running process."""
    for partial in target.glob(".part-*"):
        if not psutil.pid_exists(int(partial.name.rpartition("-")[2])):
            shutil.rmtree(partial, ignore_errors=True)
