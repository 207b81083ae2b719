"""A disk that is full while training writes: one line with the file, and nothing half-written."""

import errno
import io
from pathlib import Path
from typing import Any

import pytest
import torch

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import writing_to
from k400tiny_lib.metrics_log import append_entry
from k400tiny_lib.models.checkpoint import read_checkpoint
from k400tiny_lib.tracking.training_log import TrainingLog
from k400tiny_lib.training.worker import run
from tests.helpers.training import CPU, annotate, build_small, config, make_job

FULL = OSError(errno.ENOSPC, "No space left on device")


class FullAfter(io.FileIO):
    """A file on a disk with room for some bytes more."""

    room = 1000

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > self.room:
            super().write(bytes(data)[: self.room])
            raise OSError(FULL.errno, FULL.strerror)
        return super().write(data)


@pytest.mark.parametrize("name", ["best.pt", "last.pt", "metrics-run.jsonl"])
def test_a_full_disk_is_one_line_with_the_file_and_leaves_no_partial_one(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    job = make_job(config(tiny_data[0], tmp_path), annotate(tiny_data[0], 4, 8))
    run(make_job(job.config.replace(num_epochs=1), annotate(tiny_data[0], 4, 8)), CPU, build_small)
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    opened = Path.open

    def open_full(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if name not in path.name or mode not in ("wb", "a"):
            return opened(path, mode, *arguments, **options)
        FullAfter.room = path.stat().st_size + 10 if path.exists() else 1000
        raw = FullAfter(str(path), mode.replace("b", ""))
        return raw if mode == "wb" else io.TextIOWrapper(io.BufferedWriter(raw), write_through=True)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(UserError) as caught:
        run(job, CPU, build_small)
    monkeypatch.undo()
    path = tmp_path / name
    assert str(caught.value).startswith(
        f"checkpoint_dir: {path} cannot be written: No space left on device. Needed: room"
    )
    assert not list(tmp_path.glob(".*.part"))
    assert path.read_bytes() == before[path]
    assert read_checkpoint(tmp_path / "best.pt", "x")["epoch"] in (1, 2)
    run(job, CPU, build_small)  # with room it continues


def test_half_a_line_is_removed_from_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "log.jsonl"
    append_entry(log, {"loss": 1.0}, 1)
    before = log.read_bytes()
    opened = Path.open

    def write_half(path: Path, mode: str = "r") -> Any:
        file = opened(path, mode)
        if mode == "a":
            file.write("{half")
            file.close()
            raise OSError(FULL.errno, FULL.strerror)
        return file

    monkeypatch.setattr(Path, "open", write_half)
    with pytest.raises(OSError, match="No space"):
        append_entry(log, {"loss": 2.0}, 2)
    assert log.read_bytes() == before


def test_only_what_keeps_files_from_being_written_is_the_user_s(tmp_path: Path) -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT):
        with pytest.raises(UserError, match=r"^cache_dir: "), writing_to(tmp_path, "cache_dir"):
            raise OSError(number, "no")
    with pytest.raises(ConnectionError), writing_to(tmp_path, "cache_dir"):
        raise ConnectionResetError(errno.ECONNRESET, "reset")


def test_a_full_disk_is_not_blamed_on_the_server(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow

    with mlflow.start_run() as active:
        log = TrainingLog(active.info.run_id, tmp_path / "metrics.jsonl")

    def fail() -> None:
        raise OSError(FULL.errno, FULL.strerror)

    monkeypatch.setattr(log, "_send", fail)
    log.follow()
    log.follow()
    log.abandon()
    said = capsys.readouterr().err
    assert said.count("cannot be written: No space left on device. Training continues") == 1
    assert "server" not in said
    with pytest.raises(UserError, match=r"^checkpoint_dir: .*No space left on device\.$"):
        log.close()
    with pytest.raises(UserError, match=r"^checkpoint_dir: .*best\.pt does not exist any more"):
        log.close(checkpoint=tmp_path / "best.pt")


def test_torch_hides_a_full_disk_behind_an_error_of_its_own(tmp_path: Path) -> None:
    # What _save of models.checkpoint relies on.
    FullAfter.room = 1000
    with pytest.raises(RuntimeError) as caught, FullAfter(str(tmp_path / "x"), "w") as file:
        torch.save({"weights": torch.zeros(1000)}, file)
    assert isinstance(caught.value.__context__, OSError)
