"""Video files, decoded with PyAV; no PyTorch, so that a served model starts quickly."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.sampling import view_positions

Image = npt.NDArray[np.uint8]
Result = TypeVar("Result")

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")
# FFmpeg also reads playlists, which name other files and addresses: bytes from a stranger must not
# make it open those.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg"
# Decoding from the start to the end takes about as long as seeking for shorter videos, and knows
# of frames that have no packet of their own.
_SEEK_BEYOND = 3000
_MARGIN = 1 << 18  # pixels


def is_video(name: str) -> bool:
    """Whether a file name is that of a video; hidden files are not."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


@dataclass(frozen=True)
class Limits:
    """What one video may cost: its frames (of which few are kept) and the pixels of a frame."""

    frames: int
    pixels: int


def read_video(
    source: Path | bytes, num_frames: int, views: int = 1, limits: Limits | None = None
) -> Image:
    """Decode frames spread evenly over a video.

    Args:
        source: the file, or its content.
        num_frames: frames of a view, at least 1; a shorter video repeats frames.
        views: temporal views, one after the other; a single one begins with the first frame of
            the video and ends with the last.
        limits: what the video may cost at most.

    Returns:
        uint8 (views * num_frames, H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file cannot be decoded, is truncated, holds no video or exceeds a limit.
    """
    images = sample_video(source, num_frames, lambda image: image, views, limits)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{_name(source)} changes its frame size on the way.")
    return np.stack(images)


def sample_video(
    source: Path | bytes,
    num_frames: int,
    process: Callable[[Image], Result],
    views: int = 1,
    limits: Limits | None = None,
) -> list[Result]:
    """Decode frames spread evenly over a video and hand each one on at once.

    What containers say of their length is often wrong or missing, so the packets are counted, which
    is cheap, and the frames that came out of them too. Where the two differ (frames without a
    packet of their own, packets without a frame) the video is decoded once more. In a long video
    each frame is sought. One frame is in memory at a time, beside what `process` keeps.

    Args:
        source: the file, or its content.
        num_frames: frames of a view, at least 1; a shorter video repeats frames.
        process: called once for each distinct frame with uint8 (H, W, 3), RGB, upright.
        views: temporal views, one after the other.
        limits: what the video may cost at most.

    Returns:
        What `process` returned, views * num_frames of them, each view in order of time.

    Raises:
        UserError: if the file cannot be decoded, is truncated, holds no video or exceeds a limit.
    """
    try:
        packets = _list_packets(source, limits)
        expected = len(packets)
        found: dict[int, Result] | None = None
        indices = view_positions(expected, num_frames, views) if expected else []
        if expected > _SEEK_BEYOND:
            found = _seek_frames(source, indices, packets, process)
        # A second pass has the true count; a third would only meet a decoder of many minds.
        for _ in range(0 if found else 2):
            indices = view_positions(expected, num_frames, views) if expected else []
            total, found = _process_frames(source, set(indices), process, limits)
            if total == expected:
                break
            expected = total
        if not expected or not found or set(indices) - found.keys():
            raise UserError(f"{_name(source)} holds no frames.")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{_name(source)} cannot be decoded: {reason}.") from None
    return [found[index] for index in indices]


@dataclass(frozen=True)
class _Packet:
    """When a packet's frame is shown, in the stream's unit of time; whether it is a key frame."""

    pts: int | None
    is_key: bool


def _process_frames(
    source: Path | bytes,
    wanted: set[int],
    process: Callable[[Image], Result],
    limits: Limits | None,
) -> tuple[int, dict[int, Result]]:
    results: dict[int, Result] = {}
    position = -1
    with _open(source) as container:
        for position, frame in enumerate(container.decode(_stream(source, container, limits))):
            if position in wanted:
                results[position] = process(_upright(frame))
    return position + 1, results


def _seek_frames(
    source: Path | bytes,
    indices: Sequence[int],
    packets: Sequence[_Packet],
    process: Callable[[Image], Result],
) -> dict[int, Result] | None:
    """Decode from the key frame before each frame; None where times do not tell frames apart."""
    times = sorted(packet.pts for packet in packets if packet.pts is not None)
    keys = sorted(packet.pts for packet in packets if packet.is_key and packet.pts is not None)
    if len(set(times)) < len(packets) or not keys or keys[0] > times[0]:
        return None
    results: dict[int, Result] = {}
    with _open(source) as container:
        stream = _stream(source, container, None)
        frames: Iterator[Any] = iter(())
        last_key = None
        for index in sorted(set(indices)):
            key = keys[bisect_right(keys, times[index]) - 1]
            if key != last_key:
                container.seek(key, stream=stream)
                frames, last_key = container.decode(stream), key
            found = next((f for f in frames if f.pts is None or f.pts >= times[index]), None)
            if found is None or found.pts != times[index]:
                return None
            results[index] = process(_upright(found))
    return results


def _upright(frame: Any) -> Image:
    image = frame.to_ndarray(format="rgb24")
    # Telephones store upright videos lying down, with a note to turn them.
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90) % 4))


def _list_packets(source: Path | bytes, limits: Limits | None) -> list[_Packet]:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if not size:
        raise UserError(f"{_name(source)} is empty.")
    packets = []
    with _open(source) as container:
        stream = _stream(source, container, limits)
        # Half a download decodes without complaint, to half the video.
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        truncated = end > size
        for packet in container.demux(stream):
            if packet.size:
                packets.append(_Packet(packet.pts, packet.is_keyframe))
                truncated = truncated or packet.is_corrupt
            if limits and len(packets) > limits.frames:
                raise UserError(
                    f"{_name(source)} has more than {limits.frames} frames. Needed: a shorter one."
                )
    if truncated:
        raise UserError(f"{_name(source)} is truncated.")
    return packets


def _open(source: Path | bytes) -> Any:
    file = io.BytesIO(source) if isinstance(source, bytes) else str(source)
    return av.open(file, options={"format_whitelist": _CONTAINERS})


def _stream(source: Path | bytes, container: Any, limits: Limits | None) -> Any:
    if not container.streams.video:
        raise UserError(f"{_name(source)} has no video stream.")
    stream = container.streams.video[0]
    context = stream.codec_context
    if limits:
        if context.width * context.height > limits.pixels:
            raise UserError(
                f"{_name(source)} has frames of {context.width}x{context.height}. Needed: at most "
                f"{limits.pixels} pixels."
            )
        # The size may change on the way; the decoder, which counts a margin too, then refuses.
        context.options = {"max_pixels": str(2 * limits.pixels + _MARGIN)}
    stream.thread_type = "AUTO"
    return stream


def _name(source: Path | bytes) -> str:
    return "the video" if isinstance(source, bytes) else str(source)
