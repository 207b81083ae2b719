"""A signal asks training to end: it finishes its step, writes its state and leaves."""

import signal
from types import FrameType
from typing import Any

EXIT_CODE = 128 + signal.SIGTERM


class StopSignal:
    """Notes SIGTERM and SIGINT within its block; call it to ask whether one has come.

    Further signals change nothing: torchrun, Slurm and Ctrl-C send several. Whoever cannot wait
    sends SIGKILL, as torchrun does after 30 seconds, and loses the steps since the last write.
    """

    def __init__(self) -> None:
        self._received = False
        self._former: dict[int, Any] = {}

    def __call__(self) -> bool:
        return self._received

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
