"""Run a function on many tasks: in processes of this machine or on a Dask cluster.

joblib has both backends, but keeps every result until the caller takes it (decoded videos would
fill the memory where writing is slow), and its processes outlive a killed parent.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import cv2

from k400tiny_lib.config import AUTO, NONE
from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

Task = TypeVar("Task")
Result = TypeVar("Result")

_DASK_NEEDED = (
    "Needed: `dask scheduler` and `dask worker` started in this project's environment with "
    "PYTHONPATH=<project directory>."
)
_TASKS_PER_WORKER = 4  # enough to keep it busy, few enough to bound the results in memory


@contextmanager
def open_executor(
    scheduler: str, workers: int | str, *, preload: Sequence[str] = (), connect_timeout: float = 10
) -> Iterator[tuple[Executor, int]]:
    """Open an executor with the interface of `concurrent.futures`.

    Args:
        scheduler: address of a Dask scheduler (tcp://host:port), or `none` for local processes.
        workers: local processes; `auto` for one per core.
        preload: modules that local processes import once for all of them.
        connect_timeout: seconds until the scheduler counts as unreachable.

    Yields:
        The executor and its number of workers.

    Raises:
        UserError: if the scheduler cannot be reached or has no workers.
    """
    if scheduler == NONE:
        count = available_cores() if workers == AUTO else int(workers)
        # A fork would copy locks that threads of torch or MLflow hold, and each spawned worker
        # would import for seconds; the fork server imports once and has no threads.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(preload))
        pool = ProcessPoolExecutor(count, context, initializer=_start_worker)
        try:
            yield pool, count
        finally:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C would first finish the queue
        return
    try:
        from distributed import Client
    except ImportError:
        raise UserError(
            "dask_scheduler: the package `distributed` is not installed. "
            "Needed: pip install distributed, here and on the workers."
        ) from None
    try:
        client = Client(scheduler, timeout=connect_timeout)
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise UserError(
            f"dask_scheduler: no scheduler answers at {scheduler} within {connect_timeout} s "
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
    """Apply a function to tasks; yields each task with its result when it is done.

    At most four tasks per worker are taken ahead of the results that the caller has received, so
    memory is bounded however slow the caller is. Errors of the function are raised here.

    Raises:
        UserError: if a worker dies or lacks our code.
    """
    remaining = iter(tasks)
    running: dict[Future[Result], Task] = {}
    while True:
        for task in islice(remaining, workers * _TASKS_PER_WORKER - len(running)):
            try:
                running[executor.submit(function, task)] = task
            except BrokenProcessPool:
                raise _worker_died(task) from None
        if not running:
            return
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            task = running.pop(future)
            try:
                yield task, future.result()
            except BrokenProcessPool:
                raise _worker_died(task) from None
            except ModuleNotFoundError as error:
                raise UserError(
                    f"dask_scheduler: its workers lack {error.name!r}. {_DASK_NEEDED}"
                ) from None
            except RuntimeError as error:
                # A scheduler that cannot import the function raises this.
                if "deserialization of the task graph" not in str(error):
                    raise
                raise UserError(
                    f"dask_scheduler: the scheduler cannot import this project. {_DASK_NEEDED}"
                ) from None


def _start_worker() -> None:
    """Use one thread, leave Ctrl-C to the parent, and end when the parent ends."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _worker_died(task: object) -> UserError:
    return UserError(
        f"data_path: a worker process died, perhaps for lack of memory, at {task}. "
        "Give decode_workers a smaller number, or take that file out."
    )
