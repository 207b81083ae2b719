"""Copies of many small files to and from a file system that takes 20 ms per call.

    python -m benchmarks.remote_copies [--files 10000] [--milliseconds 20]

Both kinds of fsspec's file systems are measured: asynchronous ones (object stores), where all
threads share one client, and others (SSH, SMB), where each thread has a connection.
"""

import argparse
import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import fsspec
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from benchmarks.common import write_result
from k400tiny_lib.remote_files import fetch, upload
from k400tiny_lib.system import available_cores, cpu_name

_FILES_PER_FOLDER = 40
_BYTES = 1000


class SlowFileSystem(MemoryFileSystem):
    """Files in memory; each call to copy or to make a directory waits first."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    seconds: ClassVar[float] = 0.0

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        time.sleep(self.seconds)
        super().get_file(rpath, lpath, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        time.sleep(self.seconds)
        super().put_file(lpath, rpath, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        time.sleep(self.seconds)
        super().makedirs(path, exist_ok)


class SlowAsyncFileSystem(AsyncFileSystem):
    """The same, asynchronous."""

    protocol = "slowasync"
    store: ClassVar[dict[str, bytes]] = {}

    async def _get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        await asyncio.sleep(SlowFileSystem.seconds)
        Path(lpath).write_bytes(self.store[rpath])

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        await asyncio.sleep(SlowFileSystem.seconds)
        self.store[rpath] = Path(lpath).read_bytes()

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await asyncio.sleep(SlowFileSystem.seconds)

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return bool(self.store)

    async def _find(self, path: str, **kwargs: Any) -> dict[str, dict[str, Any]]:
        return {name: {"size": len(content)} for name, content in self.store.items()}


def run(num_files: int, milliseconds: float) -> str:
    """Measure; returns the table as markdown."""
    SlowFileSystem.seconds = milliseconds / 1000
    lines = [
        f"# Remote copies on {cpu_name()}",
        "",
        f"{available_cores()} cores, fsspec {fsspec.__version__}. {num_files:,} files of {_BYTES} "
        f"bytes, {_FILES_PER_FOLDER} per folder; {milliseconds:g} ms per call. One file after the "
        f"other would take {num_files * SlowFileSystem.seconds:.0f} s each way.",
        "",
        "| file system | upload, s | fetch, s | fetch again, s |",
        "|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)  # local copies go to .k400tiny
        for number in range(num_files):
            path = Path("out", f"clip{number // _FILES_PER_FOLDER}", f"frame{number}.jpg")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(_BYTES))
        for protocol, kind in (("slow", "one connection per thread"), ("slowasync", "async")):
            seconds = []
            for work in (upload, fetch, fetch):
                start = time.perf_counter()
                if work is upload:
                    upload(Path("out").absolute(), f"{protocol}://bucket/out", "output_dir")
                else:
                    fetch(f"{protocol}://bucket/out", "data_path")
                seconds.append(time.perf_counter() - start)
            lines.append(f"| {kind} | " + " | ".join(f"{s:.1f}" for s in seconds) + " |")
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line, measure, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--milliseconds", type=float, default=20)
    arguments = parser.parse_args()
    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
    fsspec.register_implementation("slowasync", SlowAsyncFileSystem, clobber=True)
    write_result("remote_copies", cpu_name(), run(arguments.files, arguments.milliseconds))


if __name__ == "__main__":
    main()
