"""What an exception of a worker process means to the user."""

import torch

from k400tiny_lib.errors import one_line


def compile_problem(error: BaseException) -> str:
    """The message to the user if torch.compile has failed, else ""."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return ""
    return (
        f"compile: torch.compile fails here ({one_line(error)}). Needed: a C++ compiler (g++, or "
        "the one in CXX), or compile=False."
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is full, of a GPU or of the machine."""
    # PyTorch has a dedicated exception for its own allocator of GPUs only; the libraries below it
    # take memory themselves. The kernel kills a loader process.
    signs = (
        *("DefaultCPUAllocator", "MemoryError", "Cannot allocate", "killed by signal: Killed"),
        *("CUDA out of memory", "CUDA error: out of memory", "_STATUS_ALLOC_FAILED"),
    )
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in signs
    )
