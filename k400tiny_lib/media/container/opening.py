"""Opening a video file with FFmpeg: what it may be, which stream, and why it is no video."""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import av

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.media.container.sample_tables import stated_samples
from k400tiny_lib.media.container.truncation import is_cut
from k400tiny_lib.system import available_cores

# FFmpeg also reads playlists, which name other files and addresses; untrusted bytes must not make
# it open those.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,gif,mxf,rm"
)
_LARGEST = 8192 * 8192  # pixels of a frame; a file of 2 kB may claim to have more
_MARGIN = 1 << 18  # pixels
# Where there are limits: streams of a file, their pixels, and samples of all tracks per frame.
_MOST_STREAMS, _MOST_PROBED, _SAMPLES_PER_FRAME = 64, 1920 * 1088 + _MARGIN, 32
# FFmpeg's own choice, but each thread holds frames: not more than take so many pixels together.
_MOST_THREADS, _MOST_PIXELS = 16, 32 << 20

# Files that are no videos -> their first bytes, as a pattern.
_OTHER_FILES = {
    "a JPEG picture": rb"\xff\xd8\xff",
    "a PNG picture": rb"\x89PNG",
    "a WebP picture": rb".{8}WEBP",
    "a BMP picture": rb"BM",
    "a TIFF picture": rb"II\*\0|MM\0\*",
    "a sound": rb".{8}WAVE|ID3|\xff\xfb|fLaC",
    "a PDF document": rb"%PDF",
    "a ZIP archive": rb"PK\x03\x04",
    "a gzip archive": rb"\x1f\x8b",
    "a RAR archive": rb"Rar!",
    "a tar archive": rb".{257}ustar",
    "a list of other files": rb"#EXTM3U|ffconcat",
    "a pointer of Git LFS (`git lfs pull` fetches the file)": rb"version https://git-lfs",
    "a web page": rb"(?i:\s*<(!doctype html|html|\?xml))",
    "raw H.264 without a container": rb"\0?\0\0\x01[\x67\x09]",
    "raw HEVC without a container": rb"\0\0\0\x01\x40",
    "raw YUV4MPEG2": rb"YUV4MPEG2",
}
_HEAD = 512  # bytes


@dataclass(frozen=True)
class Limits:
    """The largest video that is accepted, and how much work it may be.

    Attributes:
        frames: of the video.
        pixels: of a frame.
        check: called all along, with the pixels that have been decoded since the last call; ends
            the work by raising a UserError.
    """

    frames: int
    pixels: int
    check: Callable[[int], None] | None = None


class _CheckedBytes(io.BytesIO):
    """Bytes as a file that calls the check of the limits on each read, as no work goes without."""

    def __init__(self, content: bytes, check: Callable[[int], None]) -> None:
        super().__init__(content)
        self._check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self._check(0)
        return super().read(size)


@contextmanager
def opened(video: Path | bytes, limits: Limits | None = None) -> Iterator[Any]:
    """A video as a PyAV container; what is wrong with it is a UserError, also within the block.

    Raises:
        UserError: if the file is empty or cannot be read.
    """
    try:
        if not _size(video):
            raise UserError(f"{name_of(video)} is empty.")
        file = file_of(video, limits) if isinstance(video, bytes) else f"file:{video}"
        options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
        if limits:
            _refuse_tables(video, limits)
            # FFmpeg decodes a frame of each stream to learn more of it, all at the same time. Of
            # larger frames it knows enough.
            options |= {"max_pixels": str(_MOST_PROBED), "max_streams": str(_MOST_STREAMS)}
        try:
            # Tags in another encoding than UTF-8 are no reason to refuse a video.
            container = av.open(file, options=options, metadata_errors="replace")
        except TypeError:  # a PyAV that has no such argument, and always replaces
            container = av.open(file, options=options)
        with container:
            if limits and len(container.streams) >= _MOST_STREAMS:
                raise UserError(
                    f"{name_of(video)} has too many streams. Needed: fewer than {_MOST_STREAMS}."
                )
            yield container
    except (av.FFmpegError, OSError, ValueError) as error:
        raise _unreadable(video, error, limits=limits) from None


def _refuse_tables(video: Path | bytes, limits: Limits) -> None:
    with file_of(video, limits) as file:
        samples = stated_samples(file)
    if samples > (most := limits.frames * _SAMPLES_PER_FRAME):
        raise UserError(
            f"{name_of(video)} says that it has {samples:.3g} samples. Needed: at most {most}."
        )


def _most_pixels(limits: Limits | None) -> str:
    # The frame size may change later in the stream; the decoder, which adds a margin, refuses.
    return str(2 * (limits.pixels if limits else _LARGEST) + _MARGIN)


def _unreadable(
    video: Path | bytes,
    error: Exception | None,
    reason: str = "has no video stream",
    limits: Limits | None = None,
) -> UserError:
    """The error for a file that FFmpeg does not open, or finds no video in (error None)."""
    name = name_of(video)
    try:
        with file_of(video, limits) as file:
            head = file.read(_HEAD)
            kinds = (n for n, p in _OTHER_FILES.items() if re.match(p, head, re.DOTALL))
            kind = next(kinds, "")
            if not kind and is_cut(file):
                return UserError(f"{name} is truncated: its index or most of it is missing.")
    except OSError:  # such as a directory: the first error tells
        kind = ""
    if kind:
        return UserError(f"{name} is {kind}. Needed: a video.")
    if error is None:
        return UserError(f"{name} {reason}.")
    # FFmpeg knows nothing of the kind in it, or waits for more bytes.
    if isinstance(error, (av.InvalidDataError, av.EOFError, BlockingIOError)):
        return UserError(f"{name} cannot be decoded: no video is found in it.")
    if isinstance(error, av.ArgumentError):  # the format is not among _CONTAINERS
        return UserError(f"{name} is no video in a format that is read here.")
    reason = getattr(error, "strerror", None) or one_line(error)
    return UserError(f"{name} cannot be decoded: {reason}.")


def file_of(video: Path | bytes, limits: Limits | None = None) -> BinaryIO:
    """The content as a file; if it is bytes, each read calls the check of the limits."""
    if not isinstance(video, bytes):
        return video.open("rb")
    return _CheckedBytes(video, limits.check) if limits and limits.check else io.BytesIO(video)


def choose_stream(video: Path | bytes, container: Any) -> Any:
    """The video stream that FFmpeg chooses, but no picture such as the cover of a song.

    Raises:
        UserError: if there is none.
    """
    streams = moving_streams(container)
    if not streams:
        raise _unreadable(video, None)
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def moving_streams(container: Any) -> list[Any]:
    """The streams that may be videos."""
    streams = []
    for stream in container.streams.video:
        kinds = type(stream.disposition)
        pictures = kinds.attached_pic | kinds.timed_thumbnails | kinds.still_image
        if not stream.disposition & pictures:
            streams.append(stream)
    known = [stream for stream in streams if stream.codec_context is not None]
    return known or streams


def demux(container: Any, *streams: Any) -> Iterator[Any]:
    """The packets of some streams, or of all."""
    # PyAV may trip at the end over streams that appeared on the way (MPEG-TS).
    with suppress(IndexError):
        yield from container.demux(*streams)


def decode_packet(packet: Any, limits: Limits | None) -> list[Any]:
    """The frames that a packet completes; the check of the limits learns of their pixels.

    Raises:
        av.FFmpegError: if the decoder refuses the packet.
    """
    if not (limits and limits.check):
        frames: list[Any] = packet.decode()
        return frames
    context = packet.stream.codec_context
    # A packet without a frame is work all the same; the frames of the last, empty one are counted.
    is_work = packet.size > 0
    pixels = context.width * context.height
    try:
        frames = packet.decode()
        pixels = max(pixels, sum(frame.width * frame.height for frame in frames))
    finally:
        limits.check(pixels if is_work else 0)
    return frames


def prepare_stream(
    video: Path | bytes, stream: Any, limits: Limits | None, num_threads: int = 0
) -> None:
    """Set the decoder of a stream up: its threads (0: as many as are useful) and its limit.

    Raises:
        UserError: if there is no decoder, or the frames are larger than the limit.
    """
    context = stream.codec_context
    if context is None:
        raise _unreadable(video, None, "has a codec that this FFmpeg does not know")
    most = limits.pixels if limits else _LARGEST
    if context.width * context.height > most:
        size = f"{context.width}x{context.height}"
        raise UserError(f"{name_of(video)} has frames of {size}. Needed: at most {most} pixels.")
    context.options = {"max_pixels": _most_pixels(limits)}
    stream.thread_type = "AUTO"
    affordable = max(2, _MOST_PIXELS // max(1, context.width * context.height))
    context.thread_count = num_threads or min(available_cores() + 1, _MOST_THREADS, affordable)


def name_of(video: Path | bytes) -> str:
    """How messages call a video."""
    return "the video" if isinstance(video, bytes) else str(video)


def _size(video: Path | bytes) -> int:
    return len(video) if isinstance(video, bytes) else video.stat().st_size
