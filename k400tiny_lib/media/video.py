"""Video files, decoded with PyAV and without PyTorch, so that a served model starts quickly."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.index import VideoIndex, index_video, read_packets
from k400tiny_lib.media.container.opening import (
    Limits,
    decode_packet,
    demux,
    name_of,
    opened,
    prepare_stream,
)
from k400tiny_lib.media.container.suffixes import VIDEO_SUFFIXES, is_video
from k400tiny_lib.media.picture import SIDE, Image, Squarer, orientation
from k400tiny_lib.media.sampling import Segment, segment_range, view_indices
from k400tiny_lib.media.seeking import seek_frames

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

# Frames. For shorter videos decoding everything takes about as long as seeking.
_SEEK_BEYOND = 3000
_MOST_KEPT = 32 << 20  # bytes of packets that wait for decoding


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
        with opened(video, limits) as container:
            kept = 0 if segment else _MOST_KEPT
            index, packets = read_packets(video, container, limits, kept)
            if packets and len(index.times) <= _SEEK_BEYOND:
                wanted = request.choose(index, request.part(index))
                decoded = _decode(request, packets[0].stream, packets, wanted)
    part = request.part(index)
    wanted = request.choose(index, part)
    is_long = decoded is None and (segment or len(index.times) > _SEEK_BEYOND)
    if is_long and (images := seek_frames(video, index, wanted, side, limits)):
        return SampledVideo(_stack(images, wanted), 0, len(part), "")
    if decoded is None:
        decoded = _decode_file(request, index, wanted, last=max(wanted) if segment else None)
    if decoded.agrees(index):
        return SampledVideo(_stack(decoded.images, wanted), 0, len(part), "")
    return _decode_again(request, index, decoded)


@dataclass(frozen=True)
class _Request:
    """What `sample_video` is asked for."""

    video: Path | bytes
    num_frames: int
    views: int
    side: int
    segment: Segment | None
    limits: Limits | None
    max_bad_frames: float

    def part(self, index: VideoIndex) -> Sequence[int]:
        """The numbers of the frames of the segment, or of the video."""
        if self.segment is None or not len(index.times):
            return range(len(index.times))
        return segment_range(self.segment, index.times, index.tick)

    def choose(self, index: VideoIndex, numbers: Sequence[int]) -> list[int]:
        """The frames to return, each view in order, out of those with some numbers.

        Raises:
            UserError: if there are fewer than two.
        """
        if len(numbers) < 2:
            there = f"{name_of(self.video)} has {'one frame' if numbers else 'no frames'}"
            if self.segment:
                start, end, unit = self.segment
                length = f"{index.duration:.2f} s, {len(index.times)} frames"
                there += f" from {start:g} to {end:g} {unit} (of {length})"
            raise UserError(f"{there}. Needed: at least 2.")
        views = view_indices(len(numbers), self.num_frames, self.views)
        return [numbers[position] for position in views.ravel().tolist()]


@dataclass
class _Decoded:
    """What came out of a decoder."""

    images: dict[int, Image] = field(default_factory=dict)  # by the number of the frame
    times: list[int | None] = field(default_factory=list)  # of every frame
    damaged: set[int] = field(default_factory=set)  # frames that the decoder calls corrupt
    num_errors: int = 0  # packets that the decoder refuses
    is_complete: bool = True  # whether everything was decoded

    def agrees(self, index: VideoIndex) -> bool:
        """Whether the frames are those that the packets promise."""
        if self.num_errors or self.damaged or len(index.lost):
            return False
        if self.is_complete:
            return len(self.times) == len(index.times)
        return index.is_exact and self.times == index.times[: len(self.times)].tolist()


def _decode_file(
    request: _Request,
    index: VideoIndex,
    wanted: Collection[int],
    *,
    num_threads: int = 0,
    last: int | None = None,
) -> _Decoded:
    with opened(request.video, request.limits) as container:
        stream = container.streams[index.stream]
        prepare_stream(request.video, stream, request.limits, num_threads)
        return _decode(request, stream, demux(container, stream), wanted, last)


def _decode(
    request: _Request,
    stream: Any,
    packets: Iterable[Any],
    wanted: Collection[int],
    last: int | None = None,
) -> _Decoded:
    """Decode from the start to the end, or to frame number `last`; keep the frames `wanted`."""
    decoded, chosen, side = _Decoded(), set(wanted), request.side
    square: Squarer | None = None
    scaled: dict[int, Future[Image]] = {}
    with ThreadPoolExecutor(1) as pool:  # scales a frame while the next ones are decoded
        for packet in packets:
            try:
                frames = decode_packet(packet, request.limits)
            except av.FFmpegError:
                decoded.num_errors += 1
                continue
            for frame in frames:
                number = len(decoded.times)
                # Once: not every frame repeats an orientation that is part of the stream.
                square = square or Squarer(side, stream.sample_aspect_ratio, orientation(frame))
                decoded.times.append(frame.pts)
                if frame.is_corrupt:
                    decoded.damaged.add(number)
                if number in chosen:
                    if scaled:  # no more than one waits, at its full size
                        next(reversed(scaled.values())).result()
                    scaled[number] = pool.submit(square, frame)
            if last is not None and len(decoded.times) > last:
                decoded.is_complete = False
                break
        decoded.images = {number: image.result() for number, image in scaled.items()}
    return decoded


def _decode_again(request: _Request, index: VideoIndex, decoded: _Decoded) -> SampledVideo:
    """Decode a video whose frames are not those that its packets promise.

    Some packets hold no frame, others two; or the video is damaged.

    Raises:
        UserError: if too many frames are bad, or fewer than two are there.
    """
    # With one thread, a damaged video gives the same on every machine.
    num_threads = 1 if decoded.num_errors or decoded.damaged or len(index.lost) else 0
    if num_threads or not decoded.is_complete:
        decoded = _decode_file(request, index, (), num_threads=num_threads)
    numbers, num_bad = _frames_there(request, index, decoded)
    num_frames = len(numbers) + num_bad
    refuse_damaged(request.video, num_bad, num_frames, request.max_bad_frames)
    sound = [number for number in numbers if number not in decoded.damaged]
    num_damaged = len(numbers) - len(sound)
    wanted = request.choose(index, sound if len(sound) > 1 else numbers)
    images = _decode_file(request, index, wanted, num_threads=num_threads).images
    if not images.keys() >= set(wanted):
        name = name_of(request.video)
        raise UserError(f"{name} cannot be decoded: it gives other frames each time.")
    note = damage_note(num_bad, num_damaged, num_frames)
    return SampledVideo(_stack(images, wanted), num_bad, num_frames, note)


def refuse_damaged(
    video: Path | bytes, num_bad: int, num_frames: int, max_bad_frames: float
) -> None:
    """Raise a UserError if more than the share `max_bad_frames` of the frames are bad."""
    if num_bad > max_bad_frames * num_frames:
        raise UserError(
            f"{name_of(video)} is damaged: {num_bad} of {num_frames} frames "
            f"({num_bad / num_frames:.0%}) cannot be decoded. Needed: at most "
            f"{max_bad_frames:.0%} (max_bad_frames)."
        )


def damage_note(num_bad: int, num_damaged: int, num_frames: int) -> str:
    """What is wrong with a video's frames, in words; empty if nothing is."""
    notes = [f"{num_bad} of {num_frames} frames cannot be decoded"] if num_bad else []
    notes += [f"{num_damaged} of {num_frames} frames are damaged"] if num_damaged else []
    return ", ".join(notes)


def _frames_there(
    request: _Request, index: VideoIndex, decoded: _Decoded
) -> tuple[Sequence[int], int]:
    """The numbers of the decoded frames of the segment or the video, and how many are missing."""
    actual, promised = index.with_times(decoded.times), request.part(index)
    num_there = len(decoded.times)
    # Two packets may hold one frame (fields), but not more.
    if not decoded.num_errors and 2 * num_there + 2 >= len(index.times):
        numbers: Sequence[int] = request.part(actual)
        num_bad = 0
    elif request.segment is None:
        numbers = range(num_there)
        num_bad = max(decoded.num_errors, len(index.times) - num_there)
    elif index.is_exact:
        first, last = index.times[promised[0]], index.times[promised[-1]]
        numbers = np.flatnonzero((actual.times >= first) & (actual.times <= last)).tolist()
        num_bad = max(0, len(promised) - len(numbers))
    else:
        numbers = request.part(actual)
        num_bad = min(decoded.num_errors, max(0, len(promised) - len(numbers)))
    if request.segment and len(promised):
        first, last = index.times[promised[0]], index.times[promised[-1]]
        return numbers, num_bad + int(((index.lost >= first) & (index.lost <= last)).sum())
    return numbers, num_bad + len(index.lost)


def _stack(images: dict[int, Image], wanted: Sequence[int]) -> Image:
    return np.stack([images[number] for number in wanted])
