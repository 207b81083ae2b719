"""The work of one process that decodes: clips of one video become JPEG files.

It imports no torch, and is sent plain data, so it may run on another machine. PyAV is imported by
the first video: frame folders and the rendered sample do without it.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import combine_digests, file_digest, is_remote
from k400tiny_lib.media.sampling import Segment
from k400tiny_lib.remote_files import fetch_file

if TYPE_CHECKING:
    from k400tiny_lib.media.video import Image, VideoIndex


@dataclass(frozen=True)
class FrameSettings:
    """The frames that a video is decoded into; the defaults are the layout of K400-Tiny."""

    num_frames: int = 40
    size: int = 336
    quality: int = 90
    version: int = 2  # raise it when the same video and settings give other pixels
    max_bad_frames: float = 0.1  # share of the frames of a clip that may be damaged

    @property
    def digest(self) -> str:
        """Eight hex digits that differ where the pixels of an undamaged video do."""
        settings = asdict(self)
        del settings["max_bad_frames"]
        return combine_digests([json.dumps(settings, sort_keys=True)])[:8]


class VideoFile(NamedTuple):
    """One video."""

    uri: str  # or an absolute path, readable from every worker
    stamp: str  # changes when the file does (size, time, inode or entity tag)


class Task(NamedTuple):
    """Clips of one video to decode: plain data that can be sent to another machine."""

    video: VideoFile
    clips: tuple[tuple[str, Segment | None], ...]  # name and segment
    settings: FrameSettings
    digest: str = ""  # of the video; empty if it is not known yet


class Decoded(NamedTuple):
    """One decoded clip."""

    frames: Sequence[bytes] = ()  # JPEG files in order of time; none if the video is bad
    note: str = ""  # about frames that could not be decoded
    problem: str = ""  # why the video is bad


def decode(task: Task) -> tuple[str, list[Decoded]]:
    """Decode clips of one video into JPEG frames: short side and center crop as the settings say.

    The same video and settings give the same bytes on every worker. What is wrong with a video is
    part of the result.

    Returns:
        The digest of the file, empty if it cannot be read, and one result per clip.
    """
    path, digest = Path(task.video.uri), task.digest
    try:
        with local_file(task.video.uri) as path:
            digest = digest or _digest_once(str(path), task.video.stamp)
            index = _index_once(str(path), task.video.stamp)
            clips = [_decode_clip(path, part, index, task.settings) for _, part in task.clips]
            return digest, clips
    except UserError as error:
        problem = _about_the_video(error, path)
    except OSError as error:
        problem = f"cannot be read: {error.strerror or error}"
    return digest, [Decoded(problem=problem)] * len(task.clips)


def _decode_clip(
    path: Path, segment: Segment | None, index: "VideoIndex", settings: FrameSettings
) -> Decoded:
    from k400tiny_lib.media.video import sample_video

    if problem := _ends_after(segment, index):
        return Decoded(problem=problem)
    try:
        sampled = sample_video(
            path,
            settings.num_frames,
            side=settings.size,
            segment=segment,
            max_bad_frames=settings.max_bad_frames,
            index=index,
        )
    except UserError as error:
        return Decoded(problem=_about_the_video(error, path))
    return Decoded([_jpeg(frame, settings.quality) for frame in sampled.frames], sampled.note)


def _ends_after(segment: Segment | None, index: "VideoIndex") -> str:
    """Why a segment is not in its video; up to a second is a matter of rounding and of sound."""
    if segment is None:
        return ""
    num_frames = len(index.times)
    if segment.unit == "seconds":
        if segment.end <= index.duration + 1:
            return ""
        return f"it ends at {segment.end:g} s, the video at {index.duration:.2f} s"
    if segment.end <= num_frames + num_frames / max(index.duration, 1):
        return ""
    return f"it ends at frame {segment.end:g}, the video has {num_frames} frames"


# A worker gets the batches of a file one after the other, and reads it for the first.
@lru_cache(maxsize=2)
def _digest_once(path: str, stamp: str) -> str:
    return file_digest(Path(path))


@lru_cache(maxsize=2)
def _index_once(path: str, stamp: str) -> "VideoIndex":
    from k400tiny_lib.media.video import index_video

    return index_video(Path(path))


def _about_the_video(error: UserError, path: Path) -> str:
    return str(error).replace(f"{path} ", "").rstrip(".")


def _jpeg(frame: "Image", quality: int) -> bytes:
    _, jpeg = cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return bytes(jpeg.tobytes())


@contextmanager
def local_file(uri: str) -> Iterator[Path]:
    """A video as a local file; a remote one is copied and deleted afterwards."""
    if not is_remote(uri):
        yield Path(uri)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        fetch_file(uri, path)
        yield path
