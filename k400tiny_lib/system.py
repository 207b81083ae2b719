"""What this process may use of the machine, and what its processors do well."""

import contextlib
import ctypes
import os
import platform
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


_PR_SET_PDEATHSIG = 1  # from linux/prctl.h
_POLL_SECONDS = 0.5


def die_with_parent(parent: int | None = None) -> None:
    """Kill this process when its parent is gone, whatever ended the parent (the OOM killer, say).

    Linux does so at once. Everywhere, a thread looks from time to time.

    Args:
        parent: the process that started this one, in case it has ended already; None to ask.
    """
    parent = os.getppid() if parent is None else parent
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="die with parent", daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def available_cores() -> int:
    """Cores that this process may use, which may be fewer than the machine has.

    Respects a cpuset or `taskset`, Slurm's `--cpus-per-task` where it binds, and the CPU quota of a
    container; LOKY_MAX_CPU_COUNT lowers it further.
    """
    from joblib import cpu_count  # takes 0.2 s to import

    return int(cpu_count())


def cpu_name() -> str:
    """Name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")  # platform.processor() says no more than x86_64 on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def has_bf16_matmul(device: "torch.device") -> bool:
    """Whether a device multiplies bf16; elsewhere bf16 is slower than float32, by far.

    On a CPU by matrix instructions (AMX) or by AVX-512's products of pairs (avx512_bf16).
    """
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or can.get("avx512_bf16"))
