"""A process of torchrun: its rank, its device, its share of the clips, and signals to it."""

import itertools
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DistributedSampler

T = TypeVar("T")

EXIT_CODE = 128 + signal.SIGTERM  # of a process that a signal has stopped

# Longer than a process is ever busy alone (rank 0 saves and draws), but finite: when a node is lost
# for good, the other processes must end.
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """One process of a distributed run.

    Attributes:
        rank: its number among all processes, from 0.
        world_size: number of processes on all nodes.
        local_world_size: number of processes on this node.
        device: the GPU of its local rank, or the CPU.
        restarts: how often torchrun has restarted the workers.
    """

    rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    restarts: int

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which prints, saves and logs."""
        return self.rank == 0

    def any_rank(self, *flags: bool | Tensor) -> tuple[bool, ...]:
        """Which of the flags are true on any rank; a collective that every rank must call.

        Args:
            flags: booleans, or scalar tensors on the device, which are read here once.
        """
        if self.world_size == 1:
            return tuple(bool(flag) for flag in flags)
        raised = torch.stack([torch.as_tensor(f, device=self.device).int() for f in flags])
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in raised.tolist())

    def gather(self, value: T) -> list[T]:
        """A small value of each process, by rank, on every process; tensors must be on the CPU."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


class TrainSampler(DistributedSampler[Any]):
    """The clips of one process, in an order that follows from seed and epoch alone.

    Process r of n takes clips r, r + n, r + 2n, ... of one shuffled order, so that the batches of
    all processes together are the same clips for any n, as long as they hold as many.
    """

    _seen = 0

    def begin(self, epoch: int, seen: int) -> None:
        """Start or continue an epoch, without the first `seen` clips of this process."""
        self.set_epoch(epoch)
        self._seen = seen

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(super().__iter__(), self._seen, None)


@torch.no_grad()
def average_tensors(tensors: Iterable[Tensor]) -> None:
    """Average floating-point tensors, such as BatchNorm statistics, over all processes, in place.

    DistributedDataParallel broadcasts the statistics of rank 0 before each forward pass, and each
    process then adds its own batch; without averaging, every rank would validate a different model.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in tensors:
            if tensor.is_floating_point():
                dist.all_reduce(tensor)
                tensor /= dist.get_world_size()


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the process group that torchrun describes: nccl on GPUs, gloo on CPUs."""
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_TIMEOUT)
    try:
        yield Process(
            rank=dist.get_rank(),
            world_size=dist.get_world_size(),
            local_world_size=int(os.environ["LOCAL_WORLD_SIZE"]),
            device=device,
            restarts=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        )
    finally:
        dist.destroy_process_group()


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Record SIGTERM and SIGINT in a block, so that training can finish its update and save.

    torchrun, Slurm and Ctrl-C send several. torchrun sends SIGKILL after 30 seconds; the updates
    since the last save are then lost.

    Yields:
        A function that returns whether a signal has arrived.
    """
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
