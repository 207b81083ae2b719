"""Where work runs: processes of this machine, or a Dask cluster; the caller does not notice."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

import cv2

from k400tiny_lib.config import AUTO, NONE
from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

Task = TypeVar("Task")
Result = TypeVar("Result")

_CONNECT_SECONDS = 10
_PRELOAD = ("k400tiny_lib.data.preparation.video_frames",)
_DASK_NEEDED = (
    "Needed: `dask scheduler` and `dask worker` started in this project's environment with "
    "PYTHONPATH=<project directory>."
)
_TASKS_PER_WORKER = 4  # enough to keep it busy, few enough to bound the results in memory


@contextmanager
def open_executor(scheduler: str, workers: int | str) -> Iterator[tuple[Executor, int]]:
    """An executor with the interface of `concurrent.futures`, and how many workers it has.

    Args:
        scheduler: address of a Dask scheduler (tcp://host:port), or `none` for local processes.
        workers: local processes; `auto` for one per core.

    Raises:
        UserError: if the scheduler cannot be reached or has no workers.
    """
    if scheduler == NONE:
        count = available_cores() if workers == AUTO else int(workers)
        # A fork would copy the locks of threads that torch or MLflow have started, and spawned
        # workers would import for seconds each; the fork server imports once, without threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(_PRELOAD))
        pool = ProcessPoolExecutor(count, context, initializer=_start_worker)
        try:
            yield pool, count
        finally:
            # Leaving without this would finish the queue first, after Ctrl-C too.
            pool.shutdown(cancel_futures=True)
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "dask_scheduler: the package `distributed` is not installed. "
            "Needed: pip install distributed, here and on the workers."
        ) from None
    try:
        client = Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise UserError(
            f"dask_scheduler: no scheduler answers at {scheduler} within {_CONNECT_SECONDS} s "
            f"({type(error).__name__}). Needed: the address that `dask scheduler` prints."
        ) from None
    with client:
        count = sum(client.nthreads().values())
        if not count:
            raise UserError(f"dask_scheduler: {scheduler} has no workers. Start `dask worker`.")
        with client.get_executor() as executor:
            yield executor, count


def map_unordered(
    executor: Executor, workers: int, function: Callable[[Task], Result], tasks: Iterable[Task]
) -> Iterator[tuple[Task, Result]]:
    """Apply a function to tasks, results as they come; memory for a few tasks per worker only.

    Raises:
        UserError: if a worker dies or lacks our code; else what the function raises.
    """
    queue = iter(tasks)
    running: dict[Future[Result], Task] = {}
    exhausted = False
    while True:
        while not exhausted and len(running) < workers * _TASKS_PER_WORKER:
            try:
                task = next(queue)
            except StopIteration:
                exhausted = True
            else:
                running[executor.submit(function, task)] = task
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                yield task, future.result()
            except BrokenProcessPool:
                raise UserError(
                    f"data_path: a worker process died, perhaps for lack of memory, at {task}. "
                    "Give decode_workers a smaller number, or take that file out."
                ) from None
            except ModuleNotFoundError as error:
                raise UserError(
                    f"dask_scheduler: its workers lack {error.name!r}. {_DASK_NEEDED}"
                ) from None
            except RuntimeError as error:
                # What a scheduler says that cannot import the function.
                if "deserialization of the task graph" not in str(error):
                    raise
                raise UserError(
                    f"dask_scheduler: the scheduler cannot import this project. {_DASK_NEEDED}"
                ) from None


def _start_worker() -> None:
    """One thread each, no answer to Ctrl-C (the parent has it), and no life after the parent."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
