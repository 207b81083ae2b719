"""A signal asks training to end: it finishes its step, writes its state and leaves."""

import signal
from types import FrameType

EXIT_CODE = 128 + signal.SIGTERM


class StopSignal:
    """Notes SIGTERM and SIGINT from its making on; call it to ask whether one has come.

    Further signals change nothing: torchrun, Slurm and Ctrl-C send several. Whoever cannot wait
    sends SIGKILL, as torchrun does after 30 seconds, and loses the steps since the last write.
    """

    def __init__(self) -> None:
        self._received = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGINT, self._note)

    def __call__(self) -> bool:
        return self._received

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = True
