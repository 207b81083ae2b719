"""What a video file holds, found without decoding: its stream, packets and their times."""

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.system import available_cores

Times = npt.NDArray[np.int64]

# FFmpeg also reads playlists, which name other files and addresses; untrusted bytes must not make
# it open those.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,rm,dv"
)
_MARGIN = 1 << 18  # pixels
# More threads would only take memory: each holds a frame.
_MOST_THREADS = 4


@dataclass(frozen=True)
class Limits:
    """The largest video that is accepted: its number of frames, and the pixels of a frame."""

    frames: int
    pixels: int


class Segment(NamedTuple):
    """A part of a video.

    Attributes:
        start: the first second, counted from the first frame shown, or the first frame.
        end: the second before which the segment ends, or its last frame, which belongs to it.
        unit: of both.
    """

    start: float
    end: float
    unit: Literal["seconds", "frames"] = "seconds"


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a video; can be pickled.

    Attributes:
        stream: number of the video stream.
        tick: seconds per unit of the times below.
        times: int64 (N,), when each frame is shown, in order; those that an edit list hides are
            left out.
        keys: int64 (K,), times of the key frames, in order.
        exact: whether `times` identify the frames: all known, no two the same.
    """

    stream: int
    tick: Fraction
    times: Times
    keys: Times
    exact: bool

    @property
    def duration(self) -> float:
        """Seconds from the first frame shown to the end of the last one."""
        if len(self.times) < 2:
            return 0.0
        steps = np.diff(self.times)
        return float((self.times[-1] - self.times[0] + np.median(steps)) * self.tick)


def index_video(video: Path | bytes, limits: Limits | None = None) -> VideoIndex:
    """Read the packets of a video without decoding it.

    Args:
        video: the file, or its content.
        limits: the largest video to accept; None for any.

    Raises:
        UserError: if the file is empty or truncated, holds no video or exceeds a limit.
    """
    with opened(video) as container:
        index, _ = read_packets(video, container, limits)
    return index


def read_packets(
    video: Path | bytes, container: Any, limits: Limits | None, most_kept: int = 0
) -> tuple[VideoIndex, list[Any]]:
    """The index of an opened video, and its packets if they take at most `most_kept` bytes.

    Raises:
        UserError: as for `index_video`.
    """
    stream = choose_stream(video, container, limits)
    packets, rows, kept = [], [], 0
    # Half a file would decode to half the video without an error.
    truncated = False
    for packet in container.demux(stream):
        if packet.size:
            rows.append((packet.pts, packet.dts, packet.is_keyframe, packet.is_discard))
            truncated = truncated or packet.is_corrupt
        kept += packet.size
        if kept <= most_kept:
            packets.append(packet)
        else:
            packets.clear()
        if limits and len(rows) > limits.frames:
            raise UserError(
                f"{name_of(video)} has more than {limits.frames} frames. Needed: a shorter one."
            )
    end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if truncated or end > _size(video):
        raise UserError(f"{name_of(video)} is truncated.")
    shown = [row for row in rows if not row[3]]
    pts = [row[0] for row in shown]
    known = None not in pts
    times = sorted(t for t in (pts if known else [row[1] for row in shown]) if t is not None)
    keys = sorted({row[0] for row in rows if row[2] and row[0] is not None})
    index = VideoIndex(
        stream.index,
        Fraction(stream.time_base),
        np.array(times, np.int64),
        np.array(keys, np.int64),
        known and len(set(times)) == len(times),
    )
    return index, packets


@contextmanager
def opened(video: Path | bytes) -> Iterator[Any]:
    """A video as a PyAV container; what is wrong with it is a UserError, also within the block.

    Raises:
        UserError: if the file is empty or cannot be read.
    """
    try:
        if not _size(video):
            raise UserError(f"{name_of(video)} is empty.")
        file = io.BytesIO(video) if isinstance(video, bytes) else f"file:{video}"
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        try:
            # Tags in another encoding than UTF-8 are no reason to refuse a video.
            container = av.open(file, options=options, metadata_errors="replace")
        except TypeError:  # a PyAV that has no such argument, and always replaces
            container = av.open(file, options=options)
        with container:
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{name_of(video)} cannot be decoded: {reason}.") from None


def choose_stream(
    video: Path | bytes, container: Any, limits: Limits | None, threads: int = 0
) -> Any:
    """The video stream that FFmpeg chooses, ready for decoding; a picture of the cover is none.

    Raises:
        UserError: if there is none, or its frames are larger than the limit.
    """
    streams = [s for s in container.streams.video if not is_cover(s)]
    best = container.streams.best("video")
    stream = best if best in streams else next(iter(streams), None)
    if stream is None:
        raise UserError(f"{name_of(video)} has no video stream.")
    context = stream.codec_context
    if context is None:
        raise UserError(f"{name_of(video)} has a codec that FFmpeg does not know.")
    if limits:
        if context.width * context.height > limits.pixels:
            size = f"{context.width}x{context.height}"
            raise UserError(
                f"{name_of(video)} has frames of {size}. Needed: at most {limits.pixels} pixels."
            )
        # The frame size may change later in the stream; the decoder, which adds a margin, refuses.
        context.options = {"max_pixels": str(2 * limits.pixels + _MARGIN)}
    stream.thread_type = "AUTO"
    context.thread_count = threads or min(_MOST_THREADS, available_cores())
    return stream


def is_cover(stream: Any) -> bool:
    """Whether a stream is a picture that belongs to the file, such as the cover of a song."""
    kinds = type(stream.disposition)
    pictures = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
    return bool(stream.disposition & pictures)


def segment_range(
    segment: Segment | None, times: Sequence[int] | Times, index: VideoIndex, name: str
) -> range:
    """The positions of a segment's frames among frames shown at `times`, in order.

    Raises:
        UserError: if the segment has fewer than two frames.
    """
    if segment is None:
        return range(len(times))
    first, last = segment.start, segment.end
    if segment.unit == "frames":
        positions = range(max(0, math.ceil(first)), min(len(times), math.floor(last) + 1))
        there, size = f"{len(times)} frames", f"frames {first:g} to {last:g}"
    else:
        # Exactly, so that 0.1 s includes a frame at 0.1 s: repr is the shortest decimal number.
        ticks = [math.ceil(Fraction(repr(float(t))) / index.tick) for t in (first, last)]
        since = np.asarray(times) - index.times[0]
        start, stop = np.searchsorted(since, ticks, side="left").tolist()
        positions = range(start, stop)
        there, size = f"{index.duration:.2f} s", f"{first:g} to {last:g} s"
    if len(positions) < 2:
        raise UserError(
            f"{name} has {len(positions)} frames at {size}; the video has {there}. "
            "Needed: at least 2 frames."
        )
    return positions


def name_of(video: Path | bytes) -> str:
    """How messages call a video."""
    return "the video" if isinstance(video, bytes) else str(video)


def _size(video: Path | bytes) -> int:
    return len(video) if isinstance(video, bytes) else video.stat().st_size
