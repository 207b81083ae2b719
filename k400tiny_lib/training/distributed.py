"""Which process this is, on which device, among how many: what torchrun has set."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn


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
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(minutes=30))
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
