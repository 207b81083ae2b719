"""Video files, decoded with PyAV and without PyTorch, so that a served model starts quickly."""

from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.picture import SIDE, Squarer, orientation
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.video_index import (
    Limits,
    Segment,
    Times,
    VideoIndex,
    choose_stream,
    index_video,
    name_of,
    opened,
    read_packets,
    segment_range,
)

__all__ = [
    "SIDE",
    "VIDEO_SUFFIXES",
    "Image",
    "Limits",
    "SampledVideo",
    "Segment",
    "VideoIndex",
    "index_video",
    "is_video",
    "sample_video",
]
Image = npt.NDArray[np.uint8]

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3gpp", ".3g2", ".mj2", ".f4v", ".ismv"),
    *(".mkv", ".webm", ".avi", ".divx", ".flv", ".wmv", ".asf", ".ogv", ".ogg", ".ogm", ".gif"),
    *(".mpg", ".mpeg", ".mpe", ".m1v", ".m2v", ".mp2v", ".m2p", ".vob", ".dat", ".mod", ".vro"),
    *(".ts", ".mts", ".m2ts", ".m2t", ".tod", ".trp", ".mxf", ".rm", ".rmvb", ".dv"),
)
# Frames. For shorter videos decoding everything takes about as long as seeking.
_SEEK_BEYOND = 3000
_MOST_KEPT = 32 << 20  # bytes of packets that wait for decoding


def is_video(name: str) -> bool:
    """Whether a file name is that of a video; hidden files are not."""
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


class SampledVideo(NamedTuple):
    """Frames of a video or of a segment of it.

    Attributes:
        frames: uint8 (views * num_frames, side, side, 3), RGB, upright, the center of each frame;
            each view in order of time.
        num_bad: frames that cannot be decoded.
        num_frames: of the video or the segment, with the bad ones.
        note: what was wrong, in words; empty if nothing was.
    """

    frames: Image
    num_bad: int
    num_frames: int
    note: str


def sample_video(
    video: Path | bytes,
    num_frames: int,
    *,
    views: int = 1,
    side: int = SIDE,
    segment: Segment | None = None,
    limits: Limits | None = None,
    max_bad_frames: float = 0.1,
    index: VideoIndex | None = None,
) -> SampledVideo:
    """Decode frames spread evenly over a video, as squares.

    The length that a container states is often wrong or missing, so the packets are counted, which
    is cheap. A long video is decoded from the key frame before each frame, a shorter one from start
    to end. One frame at its full size is in memory at a time.

    Args:
        video: the file, or its content.
        num_frames: frames of a view, at least 1; a shorter video repeats frames.
        views: temporal views, one after the other; a single one begins with the first frame of the
            video and ends with the last.
        side: of the squares, in pixels.
        segment: the part to take frames from; None for the whole video.
        limits: the largest video to accept; None for any.
        max_bad_frames: share of the frames that may be impossible to decode, in [0, 1].
        index: from `index_video`, to read the packets of a file once for many segments.

    Raises:
        UserError: if the file cannot be decoded, is truncated, holds no video, has too many bad
            frames, or exceeds a limit; or if the segment is not in it.
    """
    request = _Request(video, num_frames, views, side, segment, limits, max_bad_frames)
    decoded = None
    if index is None:
        with opened(video) as container:
            index, packets = read_packets(video, container, limits, most_kept=_MOST_KEPT)
            if packets and segment is None:
                wanted = request.choose(index.times, index)
                decoded = _decode(packets[0].stream, packets, wanted, side)
    wanted = request.choose(index.times, index)
    if decoded is None and (segment or len(index.times) > _SEEK_BEYOND):
        images = _seek(request, index, wanted)
        if images:
            return _result(request, index, images, wanted)
    if decoded is None:
        decoded = _decode_file(request, wanted)
    if not decoded.agrees(index):
        decoded, wanted = _decode_again(request, index, decoded)
    return _result(request, index, decoded.images, wanted, decoded)


class _Request(NamedTuple):
    """What `sample_video` is asked for."""

    video: Path | bytes
    num_frames: int
    views: int
    side: int
    segment: Segment | None
    limits: Limits | None
    max_bad_frames: float

    def choose(self, times: Sequence[int] | Times, index: VideoIndex) -> list[int]:
        """The positions of the frames to return among frames shown at `times`."""
        name = name_of(self.video)
        if len(times) < 2:
            raise UserError(f"{name} holds {len(times) or 'no'} frames. Needed: at least 2.")
        part = segment_range(self.segment, times, index, name)
        views = view_indices(len(part), self.num_frames, self.views)
        return [part[position] for position in views.ravel().tolist()]


@dataclass
class _Decoded:
    """What came out of a decoder."""

    images: dict[int, Image] = field(default_factory=dict)  # by the number of the frame
    times: list[int | None] = field(default_factory=list)  # of every frame
    damaged: list[int] = field(default_factory=list)  # frames that the decoder calls corrupt
    num_lost: int = 0  # packets that cannot be decoded
    complete: bool = True  # whether everything was decoded

    def agrees(self, index: VideoIndex) -> bool:
        """Whether the frames are those that the packets promise."""
        if self.num_lost or self.damaged:
            return False
        if self.complete:
            return len(self.times) == len(index.times)
        return index.exact and self.times == index.times[: len(self.times)].tolist()


def _decode_file(request: _Request, wanted: Collection[int], threads: int = 0) -> _Decoded:
    with opened(request.video) as container:
        stream = choose_stream(request.video, container, request.limits, threads)
        packets = container.demux(stream)
        return _decode(stream, packets, wanted, request.side, early=request.segment is not None)


def _decode(
    stream: Any, packets: Iterable[Any], wanted: Collection[int], side: int, early: bool = False
) -> _Decoded:
    """Decode from start to end, or to the last frame that is wanted."""
    decoded, squarer, last = _Decoded(), None, max(wanted, default=-1)
    chosen = set(wanted)
    for packet in packets:
        try:
            frames = packet.decode()
        except av.FFmpegError:
            decoded.num_lost += 1
            continue
        for frame in frames:
            number = len(decoded.times)
            if squarer is None:
                squarer = Squarer(side, stream.sample_aspect_ratio, orientation(frame))
            decoded.times.append(frame.pts)
            if frame.is_corrupt:
                decoded.damaged.append(number)
            if number in chosen:
                decoded.images[number] = squarer(frame)
        if early and len(decoded.times) > last:
            decoded.complete = False
            break
    return decoded


def _decode_again(
    request: _Request, index: VideoIndex, decoded: _Decoded
) -> tuple[_Decoded, list[int]]:
    """Decode a video whose frames are not those that its packets promise.

    Some packets hold no frame, others two; or the video is damaged. A second pass then uses the
    true frames.
    """
    threads = 0
    if decoded.num_lost or decoded.damaged or not decoded.complete:
        threads = 1 if decoded.num_lost or decoded.damaged else 0  # errors depend on the threads
        decoded = _decode_file(request._replace(segment=None), (), threads)
    avoided = set(decoded.damaged)
    sound = [n for n in range(len(decoded.times)) if n not in avoided]
    if len(sound) < 2:
        sound = list(range(len(decoded.times)))
    step = float(np.median(np.diff(index.times))) if len(index.times) > 1 else 1.0
    times = [
        t if t is not None else int(index.times[0] + n * step) for n, t in enumerate(decoded.times)
    ]
    chosen = request.choose([times[n] for n in sound], index)
    wanted = [sound[position] for position in chosen]
    again = _decode_file(request._replace(segment=None), wanted, threads)
    return again, wanted


def _seek(request: _Request, index: VideoIndex, wanted: Collection[int]) -> dict[int, Image]:
    """Decode each frame from the key frame before it; nothing if times do not tell the frames."""
    keys = index.keys.tolist()
    if not index.exact or not keys or keys[0] > index.times[0]:
        return {}
    images: dict[int, Image] = {}
    with opened(request.video) as container:
        stream = choose_stream(request.video, container, request.limits)
        first = next(iter(container.decode(stream)), None)
        if first is None:
            return {}
        squarer = Squarer(request.side, stream.sample_aspect_ratio, orientation(first))
        frames: Iterator[Any] = iter(())
        last_key = None
        for number in sorted(set(wanted)):
            time = int(index.times[number])
            key = keys[bisect_right(keys, time) - 1]
            if key != last_key:
                container.seek(key, stream=stream)
                frames, last_key = container.decode(stream), key
            frame = next((f for f in frames if f.pts is None or f.pts >= time), None)
            if frame is None or frame.pts != time or frame.is_corrupt:
                return {}
            images[number] = squarer(frame)
    return images


def _result(
    request: _Request,
    index: VideoIndex,
    images: dict[int, Image],
    wanted: Sequence[int],
    decoded: _Decoded | None = None,
) -> SampledVideo:
    """The answer, or the refusal of a video with too many bad frames.

    Raises:
        UserError: if a frame is missing, or too many are bad.
    """
    name = name_of(request.video)
    num_bad = decoded.num_lost if decoded else 0
    num_frames = len(decoded.times) + num_bad if decoded and num_bad else len(index.times)
    if request.segment:
        num_frames = len(segment_range(request.segment, index.times, index, name))
    if num_bad > request.max_bad_frames * num_frames:
        raise UserError(
            f"{name} is damaged: {num_bad} of {num_frames} frames ({num_bad / num_frames:.0%}) "
            f"cannot be decoded. Needed: at most {request.max_bad_frames:.0%} (max_bad_frames)."
        )
    if not images.keys() >= set(wanted):
        raise UserError(f"{name} cannot be decoded: it gives other frames each time.")
    note = f"{num_bad} of {num_frames} frames cannot be decoded" if num_bad else ""
    frames = np.stack([images[number] for number in wanted])
    return SampledVideo(frames, num_bad, num_frames, note)
