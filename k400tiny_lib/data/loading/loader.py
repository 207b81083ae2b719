"""Batches of clips, read by worker processes or by a thread that reads ahead."""

import errno
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from k400tiny_lib.config import AUTO
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.system import available_cores, die_with_parent

_MAX_AUTO_WORKERS = 8
_SHARED_MEMORY_SIGNS = (
    "unable to allocate shared memory",
    "unable to open shared memory object",
    "unable to resize file",
    "unable to write to file </torch_",
    "killed by signal: Bus error",
)

# Before any fork: a child would wait forever for OpenCV's threads if its parent had started them,
# since they do not survive the fork. It inherits the setting; one thread is enough for an image.
cv2.setNumThreads(1)


def worker_count(
    num_workers: int | str,
    processes_per_node: int,
    dataset: ClipDataset | None = None,
    cores: int | None = None,
) -> int:
    """Loader processes for one training process.

    Args:
        num_workers: a number, or `auto`: none if clips are light, else the node's cores shared.
        processes_per_node: training processes on this node.
        dataset: what they read; None if it is never light.
        cores: of this node; None for those that this process may use.
    """
    if num_workers != AUTO:
        return int(num_workers)
    if dataset is not None and dataset.is_light:
        return 0
    cores = cores or available_cores()
    return max(1, min(_MAX_AUTO_WORKERS, cores // processes_per_node))


def make_loader(
    dataset: Dataset[tuple[Tensor, int, int]],
    sampler: Sampler[int] | Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    drop_last: bool = False,
) -> DataLoader[tuple[Tensor, int, int]]:
    """Batches of (uint8 (N, ...) clips, int64 (N,) targets, int64 (N,) positions)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
        # Use a separate generator: the seed that each new iterator draws must not advance the
        # global RNG, which dropout uses.
        generator=torch.Generator(),
    )


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader and raise a worker's UserError as its one line.

    Light clips without worker processes are read by a thread, one batch ahead.

    Raises:
        UserError: as the worker raised it, or if the shared memory is full.
    """
    ahead = not loader.num_workers and getattr(loader.dataset, "is_light", False)
    if loader.num_workers:
        _check_semaphores(loader.num_workers)
    iterator: Any = iter(loader)
    try:
        yield from _read_ahead(iterator) if ahead else iterator
    except UserError as error:
        # A DataLoader raises the same type with the worker's traceback as the message.
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None
    except (RuntimeError, OSError) as error:
        if problem := shared_memory_problem(error):
            raise UserError(problem) from None
        raise
    finally:
        # An error's traceback may keep the iterator alive until this process exits, which would
        # then wait forever for worker processes that ignore SIGTERM.
        if loader.num_workers:
            iterator._shutdown_workers()


def shared_memory_problem(error: BaseException) -> str:
    """The message to the user if loader processes have filled the shared memory, else ""."""
    text = str(error)
    # A process that touches a page beyond a full /dev/shm dies of SIGBUS. The main process hears of
    # its death by a signal, so that the error may be raised anywhere.
    if not any(sign in text for sign in _SHARED_MEMORY_SIGNS):
        return ""
    sign = next(line for line in text.splitlines() if any(s in line for s in _SHARED_MEMORY_SIGNS))
    return _shared_memory_full(sign.strip())


def _check_semaphores(num_workers: int) -> None:
    """Refuse a shared memory too full for the queues of a loader.

    A loader that fails while it is made prints a traceback when it is deleted.
    """
    try:
        # Three for the queue of each worker and of the results, and an event.
        _ = [multiprocessing.Semaphore() for _ in range(3 * num_workers + 10)]
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(_shared_memory_full(one_line(error))) from None


def _shared_memory_full(reason: str) -> str:
    return (
        f"num_workers: the shared memory of this machine (/dev/shm) is full ({reason}). "
        "Needed: num_workers=0, a smaller batch_size, or more of it (docker run --shm-size=2g)."
    )


def _read_ahead(iterator: Iterator[Any]) -> Iterator[Any]:
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def read() -> Any:
        if gpu is not None:  # the current device, which pinned memory uses, is per thread
            torch.cuda.set_device(gpu)
        return next(iterator, None)

    with ThreadPoolExecutor(1, "loader") as thread:
        following = thread.submit(read)
        while (batch := following.result()) is not None:
            following = thread.submit(read)
            yield batch


def end_with_parent(worker: int) -> None:
    """The `worker_init_fn` of loaders: no worker survives a process that was killed."""
    die_with_parent()


def _init_worker(worker: int) -> None:
    # A signal reaches the whole process group, but training needs its clips to finish the step.
    end_with_parent(worker)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
