"""Remote copies: concurrent, each file whole, and an interrupted one continues."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import local_path
from k400tiny_lib.remote_files import fetch, list_files, upload

SECONDS_PER_CALL = 0.02
NUM_FILES = 400
FILES = {f"clip{n // 40:02d}/frame{n % 40:02d}.jpg": bytes([n % 251]) * 9 for n in range(NUM_FILES)}


class SlowFileSystem(MemoryFileSystem):
    """Files in memory; every call takes 20 ms, as a server's answer would."""

    protocol = "slow"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    read: ClassVar[list[str]] = []
    broken: ClassVar[str] = ""
    threads: ClassVar[set[int]] = set()

    def get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        time.sleep(SECONDS_PER_CALL)
        self.read.append(rpath)
        self.threads.add(threading.get_ident())
        Path(lpath).write_bytes(self.cat_file(rpath)[:4])
        if self.broken and rpath.endswith(self.broken):
            raise OSError("connection lost\nat line 7")
        super().get_file(rpath, lpath, **kwargs)

    def put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        time.sleep(SECONDS_PER_CALL)
        super().put_file(lpath, rpath, **kwargs)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        time.sleep(SECONDS_PER_CALL)
        super().makedirs(path, exist_ok)


class SlowAsyncFileSystem(AsyncFileSystem):
    """The same, asynchronous as the clients of object stores are."""

    protocol = "slowasync"
    store: ClassVar[dict[str, bytes]] = {}

    async def _get_file(self, rpath: str, lpath: str, **kwargs: Any) -> None:
        await asyncio.sleep(SECONDS_PER_CALL)
        Path(lpath).write_bytes(self.store[rpath])

    async def _put_file(self, lpath: str, rpath: str, **kwargs: Any) -> None:
        await asyncio.sleep(SECONDS_PER_CALL)
        self.store[rpath] = Path(lpath).read_bytes()

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        await asyncio.sleep(SECONDS_PER_CALL)

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        return any(name.startswith(path) for name in self.store)

    async def _find(self, path: str, **kwargs: Any) -> dict[str, dict[str, Any]]:
        found = {name: content for name, content in self.store.items() if name.startswith(path)}
        return {
            name: {"size": len(content), "etag": content.hex()} for name, content in found.items()
        }


@pytest.fixture(autouse=True)
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)  # local copies go to .k400tiny
    fsspec.register_implementation("slow", SlowFileSystem, clobber=True)
    fsspec.register_implementation("slowasync", SlowAsyncFileSystem, clobber=True)
    SlowFileSystem.broken = ""
    SlowFileSystem.read.clear()
    yield
    SlowFileSystem.store.clear()
    SlowAsyncFileSystem.store.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """FILES, and a hidden one that is not to be sent."""
    for name, content in (FILES | {".k400tiny/index": b"x", "clip00/.source": b"x"}).items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "out"


def content_of(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("protocol", ["slow", "slowasync", "memory"])
def test_many_small_files_are_copied_concurrently_both_ways(folder: Path, protocol: str) -> None:
    uri = f"{protocol}://bucket/{folder.parent.name}"
    start = time.perf_counter()
    upload(folder, uri, "output_dir")
    assert content_of(fetch(uri, "data_path")) == FILES
    seconds = time.perf_counter() - start
    # One after the other: 400 reads and 400 writes. With 16 connections a small part of
    # it, and time for a busy machine.
    assert seconds < 2 * NUM_FILES * SECONDS_PER_CALL / 3


def test_what_has_arrived_is_not_fetched_again(folder: Path) -> None:
    uri = "slow://bucket/data"
    upload(folder, uri, "output_dir")
    SlowFileSystem.broken = "clip05/frame00.jpg"
    with pytest.raises(UserError, match=r"^data_path: slow://bucket/data .* connection lost$"):
        fetch(uri, "data_path")
    arrived = content_of(local_path(uri))
    assert 0 < len(arrived) < NUM_FILES
    assert arrived.items() <= FILES.items()  # whole files only, and no partial ones
    SlowFileSystem.broken = ""
    SlowFileSystem.read.clear()
    assert content_of(fetch(uri, "data_path")) == FILES
    # Those that were on their way when the first one failed may come twice.
    assert len(SlowFileSystem.read) <= NUM_FILES - len(arrived) + 16
    SlowFileSystem.read.clear()
    fetch(uri, "data_path")
    assert SlowFileSystem.read == []


def test_changed_files_are_fetched_and_vanished_ones_deleted(folder: Path) -> None:
    uri = "slow://bucket/data"
    upload(folder, uri, "output_dir")
    fetch(uri, "data_path")
    files = fsspec.filesystem("slow")
    files.pipe("slow://bucket/data/clip00/frame00.jpg", b"changed")
    files.rm("slow://bucket/data/clip00/frame01.jpg")
    SlowFileSystem.read.clear()
    content = content_of(fetch(uri, "data_path"))
    assert SlowFileSystem.read == ["slow://bucket/data/clip00/frame00.jpg"]
    assert content["clip00/frame00.jpg"] == b"changed"
    assert content.keys() == FILES.keys() - {"clip00/frame01.jpg"}


def test_a_manifest_of_a_killed_fetch_or_of_one_line_is_read(folder: Path) -> None:
    uri = "slow://bucket/data"
    upload(folder, uri, "output_dir")
    target = fetch(uri, "data_path")
    manifest = target.parent / ".fetched.json"
    [line] = manifest.read_text().splitlines()
    assert json.loads(line) == list_files(uri, "data_path")
    manifest.write_text(f'{line}\n{{"clip00/frame00.jpg": "torn')
    SlowFileSystem.read.clear()
    fetch(uri, "data_path")
    assert SlowFileSystem.read == []


def test_a_file_that_is_there_with_the_same_size_is_not_sent_again(folder: Path) -> None:
    uri = "slow://bucket/data"
    upload(folder, uri, "output_dir")
    before = fsspec.filesystem("slow").modified("slow://bucket/data/clip01/frame00.jpg")
    (folder / "clip00" / "frame00.jpg").write_bytes(b"longer than before")
    upload(folder, uri, "output_dir")
    files = fsspec.filesystem("slow")
    assert files.modified("slow://bucket/data/clip01/frame00.jpg") == before
    assert files.cat("slow://bucket/data/clip00/frame00.jpg") == b"longer than before"


def test_each_connection_of_a_file_system_that_is_not_asynchronous_has_one_thread(
    folder: Path,
) -> None:
    SlowFileSystem.threads.clear()
    upload(folder, "slow://bucket/data", "output_dir")
    fetch("slow://bucket/data", "data_path")
    assert 1 < len(SlowFileSystem.threads) <= 16


def test_a_host_that_cannot_be_reached_is_called_so() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # nobody listens
    for uri in (f"http://127.0.0.1:{port}/data", "https://nohost.invalid/video.mp4"):
        with pytest.raises(UserError, match=r"^data_path: http.* cannot be reached: ") as caught:
            list_files(uri, "data_path")
        assert "\n" not in str(caught.value)
