"""SIGTERM and SIGINT in a worker: training finishes its update, saves its state and exits."""

import signal
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class StopSignal:
    """Records SIGTERM and SIGINT within its block; call it to ask whether one has arrived.

    Further signals are ignored: torchrun, Slurm and Ctrl-C send several. torchrun sends SIGKILL
    after 30 seconds; the updates since the last save are then lost.
    """

    def __init__(self) -> None:
        self._received = False
        self._previous: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._received

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._received = True
