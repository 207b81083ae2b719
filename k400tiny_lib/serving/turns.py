"""Who may use the processors of a server, and for how long.

Every request begins as a short one, of which two are at work at a time: one is decoded while
another is classified. A request that takes longer makes room for the next, and goes on as the only
long one.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

_SHORT_AT_ONCE = 2  # more would only take memory
# Where it stops being short: 17 s of 1080p at 30 a second, or what else takes long.
_SHORT_PIXELS, _SHORT_SECONDS = 1_000_000_000, 10.0

_LONGEST_REST = 0.1  # seconds


class BusyError(UserError):
    """The server has too much to do; the same request may be answered later."""


class Turns:
    """The turns of all requests to a model.

    Long requests hold memory while they wait, so only some may.

    Args:
        max_waiting: long requests that may wait for their turn; None for one per processor.
    """

    def __init__(self, max_waiting: int | None = None) -> None:
        self._short = threading.BoundedSemaphore(_SHORT_AT_ONCE)
        self._long = threading.BoundedSemaphore(1)
        self._max_waiting = available_cores() if max_waiting is None else max_waiting
        self._num_waiting = 0
        self.num_short = 0  # at work
        self._lock = threading.Lock()

    @contextmanager
    def request(self, max_seconds: float, max_pixels: int) -> Iterator["Work"]:
        """The work of a request, which ends within the limits."""
        work = Work(self, max_seconds, max_pixels)
        try:
            yield work
        finally:
            work.end()

    def take_short(self, seconds: float) -> None:
        """Wait for the turn of a short request, at most so many seconds.

        Raises:
            BusyError: if it does not come.
        """
        if not self._short.acquire(timeout=max(0.0, seconds)):
            raise BusyError("the server is busy. Try again later.")
        with self._lock:
            self.num_short += 1

    def end_short(self) -> None:
        """Let the next short request have its turn."""
        with self._lock:
            self.num_short -= 1
        self._short.release()

    def take_long(self, seconds: float) -> None:
        """Wait for the turn of the long request, at most so many seconds.

        Raises:
            BusyError: if it does not come, or too many wait already.
        """
        if self._long.acquire(blocking=False):
            return
        with self._lock:
            may_wait = self._num_waiting < self._max_waiting
            self._num_waiting += may_wait
        try:
            if not (may_wait and self._long.acquire(timeout=max(0.0, seconds))):
                raise BusyError("the server is busy with other long requests. Try again later.")
        finally:
            with self._lock:
                self._num_waiting -= may_wait

    def end_long(self) -> None:
        """Let the next long request have its turn."""
        self._long.release()


class Work:
    """The work of one request: its time, its pixels and its turn. For one thread."""

    def __init__(self, turns: Turns, max_seconds: float, max_pixels: int) -> None:
        self._turns, self._max_seconds, self._max_pixels = turns, max_seconds, max_pixels
        self._deadline = time.monotonic() + max_seconds
        self._pixels = 0
        self._seconds, self._since = 0.0, 0.0  # in earlier turns, and when this one began
        self._checked = 0.0  # when `check` was called last
        self._has_short = self._is_long = False
        self._video_deadline, self._video_pixels = self._deadline, max_pixels

    @contextmanager
    def turn(self, is_last: bool = True) -> Iterator[None]:
        """The turn for one video; a long request keeps its own until it ends.

        Args:
            is_last: whether no video follows. Otherwise this one may take half of the time and the
                pixels that are left, so that those that follow can be answered as well.

        Raises:
            BusyError: if the time is over before the turn comes.
        """
        now = time.monotonic()
        share = 1.0 if is_last else 0.5
        self._video_deadline = now + share * (self._deadline - now)
        self._video_pixels = self._pixels + int(share * (self._max_pixels - self._pixels))
        if not self._is_long:
            self._turns.take_short(self._video_deadline - now)
            self._has_short = True
        self._since = self._checked = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - self._since
            self._end_short()

    def check(self, pixels: int) -> None:
        """To be called all along within a turn, with the pixels decoded since the last call.

        Raises:
            UserError: if the video takes too long, or too many pixels.
            BusyError: if the request is a long one, and its turn does not come.
        """
        self._pixels += pixels
        if self._pixels > self._video_pixels:
            raise UserError(
                f"too many pixels to decode. Needed: at most {self._max_pixels / 1e6:,.0f} million "
                "in all frames of a request (max_total_pixels)."
            )
        now = time.monotonic()
        if now > self._video_deadline:
            raise self._too_slow()
        seconds = self._seconds + now - self._since
        if self._has_short and (self._pixels > _SHORT_PIXELS or seconds > _SHORT_SECONDS):
            self._end_short()
            self._turns.take_long(self._video_deadline - now)
            self._is_long = True
        if self._is_long and self._turns.num_short:
            # Half of the time for those who need little of it.
            time.sleep(min(_LONGEST_REST, now - self._checked))
        self._checked = time.monotonic()

    def end(self) -> None:
        """Give up the turn of a long request."""
        if self._is_long:
            self._is_long = False
            self._turns.end_long()

    def _end_short(self) -> None:
        if self._has_short:
            self._has_short = False
            self._turns.end_short()

    def _too_slow(self) -> UserError:
        return UserError(
            f"not ready in time. Needed: a request that takes at most {self._max_seconds:g} s "
            "(max_seconds), or a server with less to do."
        )
