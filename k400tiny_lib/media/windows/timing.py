"""The frames that come out of the decoder of a video, one at a time, and when they are shown."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.index import VideoIndex
from k400tiny_lib.media.container.opening import demux, name_of, opened, prepare_stream
from k400tiny_lib.media.video import damage_note, refuse_damaged


class DecodedFrame(NamedTuple):
    """A frame as it comes from the decoder.

    Attributes:
        number: from 0.
        frame: of PyAV, at its full size, not turned.
        pixel_aspect: width of a pixel over its height; None if the stream does not tell.
    """

    number: int
    frame: Any
    pixel_aspect: Fraction | None


@dataclass
class Decoder:
    """Decodes a whole video once, and counts what is wrong with it.

    Attributes:
        num_frames: decoded up to now.
        damaged: numbers of the frames that the decoder calls corrupt.
        num_errors: packets that the decoder refuses.
    """

    video: Path
    index: VideoIndex
    num_threads: int = 0
    num_frames: int = 0
    damaged: set[int] = field(default_factory=set)
    num_errors: int = 0

    def __iter__(self) -> Iterator[DecodedFrame]:
        with opened(self.video) as container:
            stream = container.streams[self.index.stream]
            prepare_stream(self.video, stream, None, self.num_threads)
            for packet in demux(container, stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    self.num_errors += 1
                    continue
                for frame in frames:
                    number = self.num_frames
                    self.num_frames += 1
                    if frame.is_corrupt:
                        self.damaged.add(number)
                    yield DecodedFrame(number, frame, stream.sample_aspect_ratio)

    @property
    def is_damaged(self) -> bool:
        """Whether a packet or a frame was bad up to now."""
        return bool(self.num_errors or self.damaged)


@dataclass(frozen=True)
class Timing:
    """When the frames of a video are shown.

    Attributes:
        index: of the file, with the times of the frames as they come out of the decoder.
        ticks: int64 (N,), times of all frames that come out of the decoder, from 0, in order.
        numbers: int64 (M,), of the frames that are sound.
        num_threads: to decode with, so that the same frames come out again; 0 for any.
        note: what is wrong with the video, in words; empty if nothing is.
    """

    index: VideoIndex
    ticks: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    num_threads: int = 0
    note: str = ""

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame to the end of the last."""
        return (int(self.ticks[-1]) + self.index.step) * self.index.tick

    def seconds(self, number: int) -> float:
        """When a frame is shown, after the first."""
        return float(int(self.ticks[min(number, len(self.ticks) - 1)]) * self.index.tick)


def promised_timing(index: VideoIndex) -> Timing:
    """What the packets of a sound video promise."""
    ticks = index.times - index.times[0]
    return Timing(index, ticks, np.arange(len(ticks)))


def find_timing(video: Path, index: VideoIndex, max_bad_frames: float) -> Timing:
    """Decode a video to learn which frames come out of it, as `sample_video` does.

    Raises:
        UserError: if too many are bad, or fewer than two are there.
    """
    decoder = Decoder(video, index)
    times = [decoded.frame.pts for decoded in decoder]
    # With one thread, a damaged video gives the same on every machine.
    num_threads = 1 if decoder.is_damaged or len(index.lost) else 0
    if num_threads:
        decoder = Decoder(video, index, num_threads)
        times = [decoded.frame.pts for decoded in decoder]
    num_there = len(times)
    num_bad = len(index.lost)
    # Two packets may hold one frame (fields), but not more.
    if decoder.num_errors or 2 * num_there + 2 < len(index.times):
        num_bad += max(decoder.num_errors, len(index.times) - num_there)
    num_frames = num_there + num_bad
    refuse_damaged(video, num_bad, num_frames, max_bad_frames)
    if num_there < 2:
        there = "one frame" if num_there else "no frames"
        raise UserError(f"{name_of(video)} has {there}. Needed: at least 2.")
    index = index.with_times(times)
    ticks = np.maximum.accumulate(index.times)
    sound = np.setdiff1d(np.arange(num_there), list(decoder.damaged))
    note = damage_note(num_bad, num_there - len(sound), num_frames)
    numbers = sound if len(sound) > 1 else np.arange(num_there)
    return Timing(index, ticks - ticks[0], numbers, num_threads, note)
