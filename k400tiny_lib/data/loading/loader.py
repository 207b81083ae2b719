"""Batches of clips, read by worker processes or by a thread that reads ahead."""

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
from k400tiny_lib.errors import UserError
from k400tiny_lib.system import available_cores

_MAX_AUTO_WORKERS = 8

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
        worker_init_fn=_ignore_signals,
        # Use a separate generator: the seed that each new iterator draws must not advance the
        # global RNG, which dropout uses.
        generator=torch.Generator(),
    )


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """Iterate over a loader and raise a worker's UserError as its one line.

    Light clips without worker processes are read by a thread, one batch ahead.

    Raises:
        UserError: as the worker raised it.
    """
    ahead = not loader.num_workers and getattr(loader.dataset, "is_light", False)
    iterator: Any = iter(loader)
    try:
        yield from _read_ahead(iterator) if ahead else iterator
    except UserError as error:
        # A DataLoader raises the same type with the worker's traceback as the message.
        raise UserError(str(error).rpartition(f"{UserError.__name__}: ")[2].strip()) from None
    finally:
        # An error's traceback may keep the iterator alive until this process exits, which would
        # then wait forever for worker processes that ignore SIGTERM.
        if loader.num_workers:
            iterator._shutdown_workers()


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


def _ignore_signals(worker: int) -> None:
    # A signal reaches the whole process group, but training needs its clips to finish the step.
    # Loader processes end with their parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
