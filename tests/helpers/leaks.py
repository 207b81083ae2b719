"""What a test file may leave changed in its process: nothing, or the next file depends on it."""

import os
import signal
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# MLflow and torch set these for themselves when they are first used, and leave them.
_OF_LIBRARIES = (
    "PYTEST_",
    "KMP_",
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "TRITON_",
    "LD_LIBRARY_PATH",
)


def process_state() -> dict[str, Any]:
    """What tests share in a process, by name; of libraries only if they are imported."""
    state: dict[str, Any] = {
        f"environment variable {name}": value
        for name, value in os.environ.items()
        if not name.startswith(_OF_LIBRARIES)
    }
    state |= {f"handler of {number.name}": signal.getsignal(number) for number in _SIGNALS}
    state |= {
        "working directory": Path.cwd(),
        "directory of temporary files": tempfile.gettempdir(),
        "threading.excepthook": threading.excepthook,
        "warnings": warnings.showwarning,
    }
    modules = sys.modules
    if "mlflow.tracking.fluent" in modules:
        mlflow = modules["mlflow"]
        state["MLflow's store"] = mlflow.get_tracking_uri()
        state["MLflow's experiment"] = modules["mlflow.tracking.fluent"]._active_experiment_id
        state["MLflow's run"] = mlflow.active_run() and mlflow.active_run().info.run_id
    if hasattr(modules.get("torch"), "get_num_threads"):
        torch = modules["torch"]
        state["threads of torch"] = torch.get_num_threads()
        state["gradients"] = torch.is_grad_enabled()
        state["default dtype"] = torch.get_default_dtype()
        state["deterministic"] = torch.are_deterministic_algorithms_enabled()
        state["process group"] = torch.distributed.is_initialized()
    if hasattr(modules.get("cv2"), "getNumThreads"):
        state["threads of OpenCV"] = modules["cv2"].getNumThreads()
    if "matplotlib.pyplot" in modules:
        state["open figures"] = modules["matplotlib.pyplot"].get_fignums()
    return state


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """A line for each difference; a library that was imported in between has none."""
    shared = {n for n in before.keys() | after.keys() if n.startswith("environment")}
    shared |= before.keys() & after.keys()
    return [
        f"{name}: {before.get(name)!r} became {after.get(name)!r}"
        for name in sorted(shared)
        if before.get(name) != after.get(name)
    ]
