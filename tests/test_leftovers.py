"""Temporary directories of killed processes go; those of living ones stay."""

import fcntl
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from k400tiny_lib.leftovers import temporary_directory
from tests.conftest import REPOSITORY

HOLDER = """
import time
from k400tiny_lib.leftovers import temporary_directory
with temporary_directory("k400tiny-") as folder:
    open(f"{folder}/download", "w").close()
    print(folder, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_deleted_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "another").mkdir()
    command = [sys.executable, "-c", HOLDER]
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        try:
            with temporary_directory("k400tiny-") as ours, temporary_directory("k400tiny-"):
                assert (theirs / "download").exists()
                assert Path(ours).exists()
        finally:
            process.kill()
    assert theirs.exists()
    with temporary_directory("k400tiny-") as ours:
        assert {path.name for path in tmp_path.iterdir()} == {"another", Path(ours).name}
    assert [path.name for path in tmp_path.iterdir()] == ["another"]


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked"])
def test_a_directory_that_is_taken_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make, lock, made, looked = tempfile.mkdtemp, fcntl.flock, list[str](), list[str]()

    def look_once() -> None:
        """Somebody else looks for leftovers."""
        if not looked:
            looked.append(moment)
            other = threading.Thread(target=lambda: temporary_directory("k400tiny-").__enter__())
            other.start()
            other.join()

    def make_slowly(**options: Any) -> str:
        made.append(make(**options))
        path = made[-1]
        if moment == "before it is opened":
            look_once()
        return path

    def lock_slowly(file: Any, flags: int) -> None:
        if moment == "before it is locked" and not flags & fcntl.LOCK_NB:
            look_once()
        lock(file, flags)

    monkeypatch.setattr(tempfile, "mkdtemp", make_slowly)
    monkeypatch.setattr(fcntl, "flock", lock_slowly)
    with temporary_directory("k400tiny-") as folder:
        assert Path(folder).exists()
        assert folder != made[0]
    assert looked


def test_where_there_are_no_locks_a_directory_is_made_and_deleted_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def no_locks(*_: Any) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / "k400tiny-other").mkdir()  # perhaps somebody lives there
    with temporary_directory("k400tiny-") as folder:
        assert Path(folder).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["k400tiny-other"]
