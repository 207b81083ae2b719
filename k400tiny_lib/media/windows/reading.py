"""The frames of a long video in windows of some seconds, which may overlap, decoded in one go.

A frame is decoded once, whatever the number of windows that show it, and only those that a window
still waits for are in memory.
"""

from collections import Counter, deque
from collections.abc import Iterator
from fractions import Fraction
from math import ceil, floor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.index import index_video
from k400tiny_lib.media.container.opening import name_of
from k400tiny_lib.media.picture import SIDE, Image, Squarer, orientation
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.windows.timing import Decoder, Timing, find_timing, promised_timing


class Window(NamedTuple):
    """A part of a video, with its frames.

    Attributes:
        start, end: seconds after the first frame of the video.
        frames: uint8 (views * clip_len, side, side, 3), RGB, upright, the center of each frame.
    """

    start: float
    end: float
    frames: Image


class WindowReader:
    """Reads a video in windows.

    The windows begin at 0, `stride`, twice `stride` and so on. Where the last of these would end
    after the video, it is shifted to end with it; a video shorter than a window is one window.

    Args:
        video: the file.
        window: seconds.
        stride: seconds from the start of one window to that of the next.
        clip_len: frames of a view.
        views: temporal views of a window, one after the other.
        max_bad_frames: share of the video's frames that may be damaged, in [0, 1].
        side: of the squares, in pixels.

    Raises:
        UserError: if the file holds no video, is truncated, or has fewer than two frames.
    """

    def __init__(
        self,
        video: Path,
        window: float,
        stride: float,
        clip_len: int,
        views: int = 1,
        *,
        max_bad_frames: float = 0.1,
        side: int = SIDE,
    ) -> None:
        self._video, self._side, self._max_bad_frames = video, side, max_bad_frames
        # Exactly, so that a window from 0.1 s includes a frame at 0.1 s.
        self._window, self._stride = Fraction(repr(window)), Fraction(repr(stride))
        self._clip_len, self._views = clip_len, views
        index = index_video(video)
        if len(index.times) < 2:
            there = "one frame" if len(index.times) else "no frames"
            raise UserError(f"{name_of(video)} has {there}. Needed: at least 2.")
        self.timing = promised_timing(index)

    def __iter__(self) -> Iterator[Window]:
        """The windows in order of time.

        Raises:
            UserError: if too many frames are damaged; perhaps after some windows.
        """
        num_read = 0
        index = self.timing.index
        # Without times of their own, frames cannot be compared with what the packets promise.
        if index.is_exact and not len(index.lost):
            try:
                for window in self._read(self.timing, 0, check=True):
                    num_read += 1
                    yield window
                return
            except _UnexpectedError:
                pass
        self.timing = find_timing(self._video, index, self._max_bad_frames)
        yield from self._read(self.timing, num_read, check=False)

    def _read(self, timing: Timing, first: int, *, check: bool) -> Iterator[Window]:
        """The windows from number `first` on.

        Raises:
            _UnexpectedError: if `check`, and the frames are not those that the packets promise.
        """
        decoder = Decoder(self._video, timing.index, timing.num_threads)
        plans = _Plans(timing, self._window, self._stride, self._clip_len, self._views, first)
        square: Squarer | None = None
        held: dict[int, Image] = {}
        for number, frame, pixel_aspect in decoder:
            if check and (
                decoder.is_damaged
                or number >= len(timing.ticks)
                or frame.pts != timing.index.times[number]
            ):
                raise _UnexpectedError
            # Once: not every frame repeats an orientation that is part of the stream.
            square = square or Squarer(self._side, pixel_aspect, orientation(frame))
            plans.reach(number)
            if plans.needed[number]:
                held[number] = square(frame)
            yield from plans.complete(number, held)
        if decoder.num_errors and check:
            raise _UnexpectedError
        if plans.is_unfinished:
            if check:
                raise _UnexpectedError
            raise UserError(
                f"{name_of(self._video)} cannot be decoded: it gives other frames each time."
            )


class _UnexpectedError(Exception):
    """The decoder gives other frames than the packets promise."""


class _Plan(NamedTuple):
    start: Fraction
    end: Fraction
    numbers: list[int]  # of the frames, in order of the views


class _Plans:
    """The windows that are still to come and those that wait for frames.

    Attributes:
        needed: frame number -> how many of the waiting windows want it.
    """

    def __init__(
        self,
        timing: Timing,
        window: Fraction,
        stride: Fraction,
        clip_len: int,
        views: int,
        first: int,
    ) -> None:
        self._timing, self._clip_len, self._views = timing, clip_len, views
        self._ticks = timing.ticks[timing.numbers]
        self._to_come = map(self._plan, _spans(timing, window, stride, first))
        self._next = next(self._to_come, None)
        self._waiting: deque[_Plan] = deque()
        self.needed: Counter[int] = Counter()

    def reach(self, number: int) -> None:
        """Let those windows wait that begin with this frame, or before it."""
        while self._next and min(self._next.numbers) <= number:
            self._waiting.append(self._next)
            self.needed.update(set(self._next.numbers))
            self._next = next(self._to_come, None)

    def complete(self, number: int, held: dict[int, Image]) -> Iterator[Window]:
        """Give the windows that need no later frame, and let go of frames that no other needs."""
        while self._waiting and max(self._waiting[0].numbers) <= number:
            start, end, numbers = self._waiting.popleft()
            yield Window(float(start), float(end), np.stack([held[n] for n in numbers]))
            for n in set(numbers):
                self.needed[n] -= 1
                if not self.needed[n]:
                    del self.needed[n], held[n]

    @property
    def is_unfinished(self) -> bool:
        """Whether windows are left."""
        return bool(self._next or self._waiting)

    def _plan(self, span: tuple[Fraction, Fraction]) -> _Plan:
        limits = [ceil(t / self._timing.index.tick) for t in span]
        first, stop = np.searchsorted(self._ticks, limits, side="left").tolist()
        if stop <= first:  # no frame begins in the window: the one before is still shown
            first = max(0, min(first, len(self._ticks)) - 1)
            stop = first + 1
        positions = view_indices(stop - first, self._clip_len, self._views).ravel()
        return _Plan(*span, self._timing.numbers[first + positions].tolist())


def _spans(
    timing: Timing, window: Fraction, stride: Fraction, first: int
) -> Iterator[tuple[Fraction, Fraction]]:
    """Start and end of the windows from number `first` on."""
    duration = timing.duration
    if window >= duration:
        count, end = 1, duration
    else:
        count = floor((duration - window) / stride) + 1
        end = (count - 1) * stride + window
    for number in range(first, count):
        yield number * stride, min(number * stride + window, duration)
    if end <= int(timing.ticks[-1]) * timing.index.tick and first <= count:  # a frame is left
        yield duration - window, duration
