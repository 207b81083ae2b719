"""Ctrl-C, SIGTERM and a vanished `mlflow run`: one KeyboardInterrupt, at a moment of our choice.

A step that dies without a word leaves its MLflow run RUNNING for ever. So signals wait while the
step still imports MLflow and adopts its run, and become a KeyboardInterrupt afterwards.
"""

import os
import signal
import threading
import time
from types import FrameType

_armed = False
_pending = False


def defer() -> None:
    """From now on note SIGINT and SIGTERM instead of dying; `arm` lets them through.

    A step whose parent (`mlflow run`) is killed alone would go on as an orphan; it takes the loss
    of its parent for a SIGTERM.
    """
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)
    threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True).start()


def arm() -> None:
    """Raise KeyboardInterrupt for a signal that came since `defer`, and for the next one."""
    global _armed
    _armed = True
    if _pending:
        raise KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _pending
    # One is enough: mlflow answers Ctrl-C with a SIGTERM that must not disturb the cleaning up.
    first, _pending = not _pending, True
    if _armed and first:
        raise KeyboardInterrupt


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
