"""What a killed process leaves behind, found by the next one through locks that end with it.

A lock (`flock`) is released by the system, however its process ends, and works after a reboot and
between containers, where process ids say nothing.
"""

import fcntl
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path


class Mark:
    """A locked file that says that something is in use by this process.

    Where the directory is read-only or has no locks, there is no file, and nothing counts as
    abandoned.
    """

    def __init__(self, path: Path, content: Mapping[str, str]) -> None:
        self._path = path
        text = json.dumps({**content, "host": socket.gethostname()})
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a")
            # A process that looks for marks may hold it for a moment; it leaves an empty one.
            fcntl.flock(self._file, fcntl.LOCK_EX)
            self._file.write(text)
            self._file.flush()
        except OSError:
            self.remove()

    def remove(self) -> None:
        """Delete the file: nothing is left to be found."""
        with suppress(OSError):
            self._path.unlink()


def abandoned_marks(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The marks of processes of this machine that are gone, each locked while the caller has it.

    Yields:
        The file, to be deleted by the caller when it has cleaned up, and its content.
    """
    for path in sorted(folder.glob("*")):
        with _locked(path) as is_free:
            if not is_free:
                continue
            try:
                content = json.loads(path.read_text())
            except (OSError, ValueError):
                continue
            # A shared file system may keep locks per machine.
            if content.pop("host", "") == socket.gethostname():
                yield path, content


def is_held(path: Path) -> bool:
    """Whether the process that made a mark is alive."""
    with _locked(path) as is_free:
        return path.exists() and not is_free


@contextmanager
def temporary_directory(prefix: str) -> Iterator[str]:
    """A temporary directory; those that killed processes have left are deleted at first.

    Args:
        prefix: of its name, and of those to be deleted.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with _locked(path) as is_free, suppress(OSError):
            if is_free and path.stat().st_uid == os.getuid():
                shutil.rmtree(path, ignore_errors=True)
    path, descriptor = _new_directory(prefix)
    try:
        yield str(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def _new_directory(prefix: str) -> tuple[Path, int]:
    """Make a temporary directory and lock it, where there are locks; its path and descriptor."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix))
        # Before it is locked, another process may take it for one that is left, and delete it.
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY)
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists():
                return path, descriptor
            os.close(descriptor)


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Lock a file or directory if it is there and not locked; yields whether it was so."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)
