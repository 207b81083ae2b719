"""Long requests make room for short ones, and every request ends in time."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.serving import turns as turns_module
from k400tiny_lib.serving.turns import BusyError, Turns

LONG = 30.0  # seconds; no test waits for it


@pytest.fixture(autouse=True)
def no_request_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_SHORT_SECONDS", -1.0)


def test_pixels_are_counted_over_all_videos_of_a_request() -> None:
    with Turns().request(LONG, 100) as work:
        with work.turn(is_last=False):
            work.check(40)
        with work.turn():
            work.check(60)
            with pytest.raises(UserError, match="too many pixels"):
                work.check(1)


def test_a_bad_video_leaves_half_of_the_pixels_and_the_time_to_those_that_follow() -> None:
    with Turns().request(0.4, 100) as work:
        with work.turn(is_last=False):
            work.check(50)
            with pytest.raises(UserError, match="too many pixels"):
                work.check(1)
        with work.turn(is_last=False):
            time.sleep(0.21)
            with pytest.raises(UserError, match="not ready in time"):
                work.check(0)
        with work.turn():
            work.check(20)


def test_a_request_that_waits_for_its_turn_gives_up_in_time() -> None:
    turns = Turns()
    with (
        turns.request(LONG, 1) as first,
        turns.request(LONG, 1) as second,
        first.turn(),
        second.turn(),
        turns.request(0.05, 1) as third,
        pytest.raises(BusyError, match="busy"),
        third.turn(),
    ):
        pass


def test_a_long_request_makes_room_for_short_ones_and_is_the_only_one() -> None:
    turns = Turns(max_waiting=0)
    with turns.request(LONG, 1) as first, first.turn():
        first.check(0)  # goes on as the long one
        for _ in range(5):
            with (
                turns.request(LONG, 1) as other,
                other.turn(),
                turns.request(LONG, 1) as another,
                another.turn(),
            ):
                pass
        with (
            turns.request(LONG, 1) as second,
            second.turn(),
            pytest.raises(BusyError, match="busy"),
        ):
            second.check(0)
    with turns.request(LONG, 1) as third, third.turn():
        third.check(0)


def test_a_long_request_that_waits_is_next() -> None:
    turns, entered = Turns(max_waiting=1), threading.Event()

    def wait_for_long() -> bool:
        with turns.request(LONG, 1) as work, work.turn():
            entered.set()
            work.check(0)
            return True

    with ThreadPoolExecutor(1) as pool:
        with turns.request(LONG, 1) as first, first.turn():
            first.check(0)
            waiting = pool.submit(wait_for_long)
            entered.wait(LONG)
            time.sleep(0.05)
            assert not waiting.done()
        assert waiting.result(LONG)


def test_errors_and_refusals_leave_no_turn_taken() -> None:
    turns = Turns(max_waiting=0)
    for _ in range(5):
        with turns.request(LONG, 0) as work, pytest.raises(UserError), work.turn():
            work.check(1)
        with turns.request(LONG, 1) as work, work.turn():
            work.check(0)
