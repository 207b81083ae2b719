"""Which process this is, on which device, among how many: what torchrun has set."""

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

T = TypeVar("T")

# How long processes wait for one another: longer than any of them is busy on its own, yet an end
# for those that are left when a node is lost for good.
_WAIT = timedelta(minutes=10)


@dataclass(frozen=True)
class Process:
    """One process of a distributed run.

    Attributes:
        rank: its number among all processes, from 0.
        world_size: how many there are on all nodes.
        local_world_size: how many there are on this node.
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
        """Whether this process speaks for all: prints, saves, logs."""
        return self.rank == 0

    def anywhere(self, *flags: bool) -> tuple[bool, ...]:
        """Which of the flags are up on any process; every process must ask at the same place."""
        if self.world_size == 1:
            return flags
        raised = torch.tensor(flags, dtype=torch.int32, device=self.device)
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
    """The clips of one process in an order that follows from seed and epoch alone.

    Process r of n takes every n-th clip from the r-th on, so that the batches of all processes
    together are the same clips for any n, as long as they hold as many.
    """

    _seen = 0

    def begin(self, epoch: int, seen: int) -> None:
        """Start or continue an epoch: the first `seen` clips of this process are passed over."""
        self.set_epoch(epoch)
        self._seen = seen

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(super().__iter__(), self._seen, None)


@torch.no_grad()
def average_buffers(model: nn.Module) -> None:
    """Average the BatchNorm statistics of all processes.

    Each process has gathered those of its own clips since DistributedDataParallel sent rank 0's
    around; without this every rank would validate another model than the one that is saved.
    """
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.all_reduce(buffer)
                buffer /= dist.get_world_size()


@contextmanager
def process_group() -> Iterator[Process]:
    """Join the process group that torchrun describes: nccl on GPUs, gloo on CPUs."""
    local_rank = int(os.environ["LOCAL_RANK"])
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=_WAIT)
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
