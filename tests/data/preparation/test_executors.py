"""Work in other processes: all of it, in bounded memory, and one line when it fails."""

import os
from collections.abc import Iterator

import pytest

from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.errors import UserError


def test_an_unreachable_scheduler_is_one_line() -> None:
    pytest.importorskip("distributed")
    with (
        pytest.raises(UserError, match=r"^dask_scheduler: no scheduler answers at tcp://127") as e,
        open_executor("tcp://127.0.0.1:9", "auto", connect_timeout=1),
    ):
        pass
    assert "\n" not in str(e.value)


def _square(number: int) -> int:
    return number * number


def test_map_unordered_takes_few_tasks_at_a_time_and_loses_none() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for number in range(50):
            taken.append(number)
            yield number

    done = []
    with open_executor("none", 1) as (executor, count):
        for number, square in map_unordered(executor, count, _square, tasks()):
            assert square == number * number
            done.append(number)
            assert len(taken) - len(done) <= 4
    assert sorted(done) == list(range(50))


def _die(number: int) -> int:
    os._exit(number)


def test_a_worker_that_dies_is_one_line() -> None:
    with open_executor("none", 1) as (executor, count):
        results = map_unordered(executor, count, _die, [7])
        with pytest.raises(UserError, match=r"^data_path: a worker process died.* at 7") as error:
            next(results)
    assert "\n" not in str(error.value)
