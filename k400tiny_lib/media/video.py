"""Video files, decoded with PyAV and without PyTorch, so that a served model starts quickly."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.media.sampling import view_indices

Image = npt.NDArray[np.uint8]
Result = TypeVar("Result")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
# FFmpeg also reads playlists, which name other files and addresses; untrusted bytes must not make
# it open those.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"
# Packets. For shorter videos decoding everything takes about as long as seeking, and it also finds
# frames that share a packet with another frame.
_SEEK_BEYOND = 3000
_MARGIN = 1 << 18  # pixels


def is_video(name: str) -> bool:
    """Whether a file name is that of a video; hidden files are not."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


@dataclass(frozen=True)
class Limits:
    """The largest video that is accepted: its number of frames, and the pixels of a frame."""

    frames: int
    pixels: int


def read_video(
    video: Path | bytes, num_frames: int, views: int = 1, limits: Limits | None = None
) -> Image:
    """Decode frames spread evenly over a video; see `sample_video`.

    Returns:
        uint8 (views * num_frames, H, W, 3), RGB in [0, 255].

    Raises:
        UserError: as for `sample_video`, or if the frame size changes.
    """
    images = sample_video(video, num_frames, lambda image: image, views, limits)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{_name(video)} changes its frame size on the way.")
    return np.stack(images)


def sample_video(
    video: Path | bytes,
    num_frames: int,
    process: Callable[[Image], Result],
    views: int = 1,
    limits: Limits | None = None,
) -> list[Result]:
    """Decode frames spread evenly over a video and process each one as it is decoded.

    The length that a container states is often wrong or missing, so the packets are counted, which
    is cheap. A long video is decoded from the key frame before each frame, a shorter one from start
    to end. One frame is in memory at a time, in addition to what `process` returns.

    Args:
        video: the file, or its content.
        num_frames: frames of a view, at least 1; a shorter video repeats frames.
        process: called once for each distinct frame with uint8 (H, W, 3), RGB, upright.
        views: temporal views, one after the other; a single one begins with the first frame of the
            video and ends with the last.
        limits: the largest video to accept; None for any.

    Returns:
        Results of `process`, views * num_frames of them, each view in order of time.

    Raises:
        UserError: if the file cannot be decoded, is truncated, holds no video or exceeds a limit.
    """

    def sample(count: int) -> list[int]:
        indices: list[int] = view_indices(count, num_frames, views).ravel().tolist()
        return indices

    try:
        packets = list_packets(video, limits)
        results: list[Result] = []
        if len(packets) > _SEEK_BEYOND:
            results = sample_by_seeking(video, sample(len(packets)), packets, process)
        if packets and not results:
            results = _sample_by_decoding(video, sample, len(packets), process, limits)
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{_name(video)} cannot be decoded: {reason}.") from None
    if not results:
        raise UserError(f"{_name(video)} holds no frames.")
    return results


@dataclass(frozen=True)
class Packet:
    """When a packet's frame is shown, in the stream's time unit, and whether it is a key frame."""

    pts: int | None
    is_key: bool


def _sample_by_decoding(
    video: Path | bytes,
    sample: Callable[[int], list[int]],
    count: int,
    process: Callable[[Image], Result],
    limits: Limits | None,
) -> list[Result]:
    """Decode from start to end; no results if there are no frames.

    Packets without a frame, or frames that share a packet, make the number of frames differ from
    `count`, the number of packets. A second pass then uses the true number; a third would not help
    if the decoder is non-deterministic.
    """
    for _ in range(2):
        indices = sample(count)
        results: dict[int, Result] = {}
        decoded = 0
        with _open(video) as container:
            for frame in container.decode(_stream(video, container, limits)):
                if decoded in indices:
                    results[decoded] = process(_upright(frame))
                decoded += 1
        if decoded in (0, count):
            break
        count = decoded
    return [results[index] for index in indices] if results.keys() >= set(indices) else []


def sample_by_seeking(
    video: Path | bytes,
    indices: Sequence[int],
    packets: Sequence[Packet],
    process: Callable[[Image], Result],
) -> list[Result]:
    """Decode each frame from the key frame before it.

    Args:
        video: the file, or its content.
        indices: which frames, counted in order of time.
        packets: of the whole video.
        process: as for `sample_video`.

    Returns:
        Results of `process` in the order of `indices`; none if times do not identify the frames.
    """
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    if len(set(times)) < len(packets) or not keys or keys[0] > times[0]:
        return []
    results: dict[int, Result] = {}
    with _open(video) as container:
        stream = _stream(video, container, None)
        frames: Iterator[Any] = iter(())
        last_key = None
        for index in sorted(set(indices)):
            key = keys[bisect_right(keys, times[index]) - 1]
            if key != last_key:
                container.seek(key, stream=stream)
                frames, last_key = container.decode(stream), key
            frame = next((f for f in frames if f.pts is None or f.pts >= times[index]), None)
            if frame is None or frame.pts != times[index]:
                return []
            results[index] = process(_upright(frame))
    return [results[index] for index in indices]


def _upright(frame: Any) -> Image:
    image = frame.to_ndarray(format="rgb24")
    # Phones store portrait videos rotated, with a display-matrix flag.
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def list_packets(video: Path | bytes, limits: Limits | None = None) -> list[Packet]:
    """The packets of a video, without decoding it.

    Raises:
        UserError: if the file is empty or truncated, holds no video or exceeds a limit.
    """
    size = len(video) if isinstance(video, bytes) else video.stat().st_size
    if not size:
        raise UserError(f"{_name(video)} is empty.")
    packets = []
    with _open(video) as container:
        stream = _stream(video, container, limits)
        # Half a file would decode to half the video without an error.
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        truncated = end > size
        for packet in container.demux(stream):
            if packet.size:
                packets.append(Packet(packet.pts, packet.is_keyframe))
                truncated = truncated or packet.is_corrupt
            if limits and len(packets) > limits.frames:
                raise UserError(
                    f"{_name(video)} has more than {limits.frames} frames. Needed: a shorter one."
                )
    if truncated:
        raise UserError(f"{_name(video)} is truncated.")
    return packets


def _open(video: Path | bytes) -> Any:
    file = io.BytesIO(video) if isinstance(video, bytes) else str(video)
    return av.open(file, options={"format_whitelist": _CONTAINERS})


def _stream(video: Path | bytes, container: Any, limits: Limits | None) -> Any:
    if not container.streams.video:
        raise UserError(f"{_name(video)} has no video stream.")
    stream = container.streams.video[0]
    context = stream.codec_context
    if limits:
        if context.width * context.height > limits.pixels:
            size = f"{context.width}x{context.height}"
            raise UserError(
                f"{_name(video)} has frames of {size}. Needed: at most {limits.pixels} pixels."
            )
        # The frame size may change later in the stream; the decoder, which adds a margin, refuses.
        context.options = {"max_pixels": str(2 * limits.pixels + _MARGIN)}
    stream.thread_type = "AUTO"
    return stream


def _name(video: Path | bytes) -> str:
    return "the video" if isinstance(video, bytes) else str(video)
