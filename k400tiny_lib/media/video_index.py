"""What a video file holds, found without decoding: its stream, packets and their times."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.media.container_ends import Facts
from k400tiny_lib.media.signatures import HEAD, kind_of
from k400tiny_lib.media.truncation import find_truncation, is_cut
from k400tiny_lib.system import available_cores

Times = npt.NDArray[np.int64]

# FFmpeg also reads playlists, which name other files and addresses; untrusted bytes must not make
# it open those.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,rm"
)
_MARGIN = 1 << 18  # pixels
# More threads would only take memory: each holds a frame.
_MOST_THREADS = 4


@dataclass(frozen=True)
class Limits:
    """The largest video that is accepted: its number of frames, and the pixels of a frame."""

    frames: int
    pixels: int


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a video; can be pickled.

    Attributes:
        stream: number of the video stream.
        tick: seconds per unit of the times below.
        times: int64 (N,), when each frame is shown, in order; those that an edit list hides are
            left out.
        keys: int64 (K,), times of the key frames, in order.
        is_exact: whether `times` identify the frames: all known, no two the same.
    """

    stream: int
    tick: Fraction
    times: Times
    keys: Times
    is_exact: bool

    @property
    def duration(self) -> float:
        """Seconds from the first frame shown to the end of the last one."""
        if len(self.times) < 2:
            return 0.0
        return float((int(self.times[-1] - self.times[0]) + self.step) * self.tick)

    @property
    def step(self) -> int:
        """The usual time from one frame to the next."""
        return int(np.median(np.diff(self.times))) if len(self.times) > 1 else 1


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
    stream = _choose_stream(video, container)
    prepare_stream(video, stream, limits)
    rows: dict[int, list[_Row]] = {s.index: [] for s in container.streams.video}
    packets, num_kept, ending = [], 0, _Ending(container)
    # All streams: a file whose sound is longer than its pictures is whole.
    for packet in container.demux():
        if packet.size:
            ending.add(packet)
        number = packet.stream.index  # the last, empty one has no stream_index
        if number in rows and packet.size:
            row = _Row(packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
            rows[number].append(row)
        if number == stream.index:
            num_kept += packet.size
            if num_kept <= most_kept:
                packets.append(packet)
            else:
                packets.clear()
            if limits and len(rows[stream.index]) > limits.frames:
                raise UserError(
                    f"{name_of(video)} has more than {limits.frames} frames. Needed: a shorter one."
                )
    with _file(video) as file:
        missing = find_truncation(file, container.format.name, ending.facts())
    if missing:
        raise UserError(f"{name_of(video)} is truncated: {missing}.")
    if len(rows[stream.index]) < 2:  # a picture that is not marked as one
        others = [s for s in _moving(container) if len(rows[s.index]) > 1]
        if others:
            stream, packets = max(others, key=lambda s: len(rows[s.index])), []
            prepare_stream(video, stream, limits)
    return _index(stream, rows[stream.index]), packets


class _Row(NamedTuple):
    pts: int | None
    dts: int | None
    is_key: bool
    is_hidden: bool  # by an edit list


def _index(stream: Any, rows: Sequence[_Row]) -> VideoIndex:
    shown = [row for row in rows if not row.is_hidden]
    pts = [row.pts for row in shown if row.pts is not None]
    # Without them, frames are shown as regularly as they are stored.
    times = pts if len(pts) == len(shown) else [row.dts for row in shown if row.dts is not None]
    keys = {row.pts for row in rows if row.is_key and row.pts is not None}
    return VideoIndex(
        stream.index,
        Fraction(stream.time_base),
        np.array(sorted(times), np.int64),
        np.array(sorted(keys), np.int64),
        is_exact=len(pts) == len(shown) == len(set(pts)),
    )


class _Ending:
    """Collects how the packets of a file end."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._ends: dict[int, int] = {}  # by stream, in its time unit
        self._last: Any = None
        self._uncompressed = {
            s.index for s in container.streams if s.codec_context and not s.codec.lossy
        }

    def add(self, packet: Any) -> None:
        """Add a packet of any stream."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            end = stamp + (packet.duration or 0)
            self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))
        if self._last is None or (packet.pos or 0) >= (self._last.pos or 0):
            self._last = packet

    def facts(self) -> Facts:
        """All that was seen."""
        container, last = self._container, self._last
        streams = container.streams
        ends = [end * streams[index].time_base for index, end in self._ends.items()]
        start = Fraction(container.start_time or 0, av.time_base)
        position = (last.pos or 0) if last else 0
        packets_end = position + (last.size if last else 0)
        index = [e.pos + e.size for s in streams for e in s.index_entries]
        return Facts(
            index_end=max(index, default=0),
            last_start=position,
            packets_end=packets_end,
            # A gap in the numbers of MPEG-TS makes a packet corrupt, too.
            is_cut=bool(last and last.is_corrupt and container.format.name != "mpegts"),
            is_compressed=last is not None and last.stream_index not in self._uncompressed,
            seconds=float(max(ends, default=Fraction(0)) - start),
            stated=(container.duration or 0) / av.time_base,
        )


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
        raise _unreadable(video, error) from None


def _unreadable(video: Path | bytes, error: Exception | None) -> UserError:
    """The error for a file that FFmpeg does not open, or finds no video in (error None)."""
    name = name_of(video)
    try:
        with _file(video) as file:
            kind = kind_of(file.read(HEAD))
            if not kind and is_cut(file):
                return UserError(f"{name} is truncated: its index or most of it is missing.")
    except OSError:  # such as a directory: the first error tells
        kind = ""
    if kind:
        return UserError(f"{name} is {kind}. Needed: a video.")
    if error is None:
        return UserError(f"{name} has no video stream.")
    if isinstance(error, BlockingIOError):  # FFmpeg waits for more bytes
        return UserError(f"{name} cannot be decoded: no video is found in it.")
    if isinstance(error, av.ArgumentError):  # the format is not among _CONTAINERS
        return UserError(f"{name} is no video in a format that is read here.")
    reason = getattr(error, "strerror", None) or one_line(error)
    return UserError(f"{name} cannot be decoded: {reason}.")


def _file(video: Path | bytes) -> BinaryIO:
    return io.BytesIO(video) if isinstance(video, bytes) else video.open("rb")


def _choose_stream(video: Path | bytes, container: Any) -> Any:
    """The video stream that FFmpeg chooses, but no picture such as the cover of a song.

    Raises:
        UserError: if there is none.
    """
    streams = _moving(container)
    if not streams:
        raise _unreadable(video, None)
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def _moving(container: Any) -> list[Any]:
    """The streams that may be videos."""
    streams = []
    for stream in container.streams.video:
        kinds = type(stream.disposition)
        pictures = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
        if not stream.disposition & pictures:
            streams.append(stream)
    return streams


def prepare_stream(
    video: Path | bytes, stream: Any, limits: Limits | None, num_threads: int = 0
) -> None:
    """Set the decoder of a stream up: its threads (0: as many as are useful) and its limit.

    Raises:
        UserError: if there is no decoder, or the frames are larger than the limit.
    """
    context = stream.codec_context
    if context is None:
        raise UserError(f"{name_of(video)} has a codec that this FFmpeg does not know.")
    if limits:
        if context.width * context.height > limits.pixels:
            size = f"{context.width}x{context.height}"
            raise UserError(
                f"{name_of(video)} has frames of {size}. Needed: at most {limits.pixels} pixels."
            )
        # The frame size may change later in the stream; the decoder, which adds a margin, refuses.
        context.options = {"max_pixels": str(2 * limits.pixels + _MARGIN)}
    stream.thread_type = "AUTO"
    context.thread_count = num_threads or min(_MOST_THREADS, available_cores())


def name_of(video: Path | bytes) -> str:
    """How messages call a video."""
    return "the video" if isinstance(video, bytes) else str(video)


def _size(video: Path | bytes) -> int:
    return len(video) if isinstance(video, bytes) else video.stat().st_size
