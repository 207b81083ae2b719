"""The device of these tests: the first GPU, or what K400TINY_GPU_TEST_DEVICE names, to debug them.

Everything here needs torch, torchvision and the light packages of the library only: neither MLflow
nor PyAV, and pytorchvideo for two architectures.
"""

import os
import socket
from collections.abc import Iterator

import pytest
import torch

from k400tiny_lib.distributed.process import Process

# Read by cuBLAS when it starts: without a fixed workspace its sums depend on the order of streams.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where to compute; skips where there is no GPU."""
    name = os.environ.get("K400TINY_GPU_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return torch.device(name, 0) if name == "cuda" else torch.device(name)


@pytest.fixture
def process(device: torch.device) -> Process:
    """The only process, on the device."""
    return Process(rank=0, world_size=1, local_world_size=1, device=device, restarts=0)


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """The same kernels each time, and float32 that is not rounded to 10 bits."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = False, True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = before


@pytest.fixture
def alone_in_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that torchrun gives to a single worker."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    for name in ("RANK", "LOCAL_RANK", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
