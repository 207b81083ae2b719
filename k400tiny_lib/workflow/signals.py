"""Ctrl-C, SIGTERM and the death of `mlflow run` in a step: one KeyboardInterrupt, when it is safe.

A step that is killed before it has adopted its MLflow run leaves that run RUNNING for ever. Signals
are therefore deferred while the step imports MLflow, and raise KeyboardInterrupt afterwards.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

_PARENT = os.getppid()  # `steps` imports this module first, while a parent that dies still counts
_STARTER = "K400TINY_STARTER"  # environment variable of steps: the process id of their `main`

_armed = False
_pending = False


def defer() -> None:
    """From now on record SIGINT and SIGTERM instead of dying; `arm` raises for them.

    A step whose parent process (`mlflow run`) dies would continue as an orphan, so the death of the
    parent counts as a SIGTERM. So does the death of the `main` that started it, which may be gone
    already, or be behind a shell that outlives it.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    sys.unraisablehook = _on_unraisable
    starter = os.environ.pop(_STARTER, "")
    watched = (_PARENT, int(starter) if starter.isdecimal() else None)
    threading.Thread(target=_watch_parent, args=watched, daemon=True).start()


def watch_in_children() -> None:
    """From now on the steps that this process starts end with it."""
    os.environ[_STARTER] = str(os.getpid())


def arm() -> None:
    """Raise KeyboardInterrupt for a signal that arrived since `defer`, and for the next one."""
    global _armed
    _armed = True
    if _pending:
        raise KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _pending
    # Only the first: mlflow answers Ctrl-C with a SIGTERM, which must not interrupt the clean-up.
    first, _pending = not _pending, True
    if _armed and first:
        raise KeyboardInterrupt


def _on_unraisable(error: "sys.UnraisableHookArgs") -> None:
    """Send the signal again where Python ignores the exception: in a finalizer or a callback."""
    global _pending
    if issubclass(error.exc_type, KeyboardInterrupt):
        _pending = False
        # A little later, for an exception within this hook would be ignored too.
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    else:
        sys.__unraisablehook__(error)


def _watch_parent(parent: int, starter: int | None) -> None:
    import psutil  # here, not while signals would still kill

    def has_starter() -> bool:
        return starter is None or any(p.pid == starter for p in psutil.Process().parents())

    while os.getppid() == parent and has_starter():
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
