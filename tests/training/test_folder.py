"""One directory, one training: the lock, whose checkpoints it holds, and which one is continued."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.checkpoint import run_of, write_checkpoint, write_last
from k400tiny_lib.training.folder import (
    ROOT,
    find_interrupted,
    hold_folder,
    resolve_checkpoint_dir,
    training_identity,
)
from k400tiny_lib.training.resuming import resolve_checkpoint_paths
from tests.conftest import REPOSITORY

HOLDER = """
import sys, time
from k400tiny_lib.config import Config
from k400tiny_lib.training.folder import hold_folder
with hold_folder(Config(checkpoint_dir=sys.argv[1]), "first"):
    print("held", flush=True)
    time.sleep(600)
"""


def content(run_id: str, **parameters: Any) -> dict[str, Any]:
    return {
        "model": {},
        "epoch": 1,
        "config": Config(**parameters).to_dict(),
        "categories": {},
        "run_id": run_id,
        "processes": [{}],
    }


def test_a_second_training_is_refused_until_the_process_of_the_first_is_dead(
    tmp_path: Path,
) -> None:
    settings = Config(checkpoint_dir=str(tmp_path))
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout
    assert first.stdout.readline() == "held\n"
    message = rf"^checkpoint_dir: {tmp_path} is in use by the training of run first \(process "
    with (
        pytest.raises(UserError, match=rf"{message}{first.pid} on .*another checkpoint_dir"),
        hold_folder(settings, "second"),
    ):
        pass
    first.send_signal(signal.SIGKILL)
    first.wait()
    with hold_folder(settings, "second") as hold:
        assert not hold.joined


def test_the_nodes_of_one_training_share_a_directory_and_others_stay_out(tmp_path: Path) -> None:
    nodes = {"nnodes": 2, "rdzv_endpoint": "n0:29400", "checkpoint_dir": str(tmp_path)}
    with hold_folder(Config(**nodes, node_rank=1), "node 1"):
        with hold_folder(Config(**nodes), "node 0") as hold:
            assert hold.joined
            write_last(content("node 1"), tmp_path)
            # A node that comes back is no other training.
            resolve_checkpoint_paths(Config(**nodes), "node 0", hold=hold)
        for other in (nodes | {"rdzv_endpoint": "n0:29500"}, {"checkpoint_dir": str(tmp_path)}):
            with pytest.raises(UserError, match=r"run node 1"), hold_folder(Config(**other), "x"):
                pass


def test_a_file_system_without_locks_is_said_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with hold_folder(Config(checkpoint_dir=str(tmp_path)), "run"):
        pass
    assert capsys.readouterr().out.count("has no locks (No locks available)") == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(UserError, match=r"^checkpoint_dir: .* cannot be written to"),
        hold_folder(Config(checkpoint_dir=str(tmp_path)), "run"),
    ):
        pass


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "best.pt"])
def test_checkpoints_of_another_run_are_not_overwritten(tmp_path: Path, name: str) -> None:
    write_checkpoint(content("former"), tmp_path / name)
    settings = Config(checkpoint_dir=str(tmp_path))
    with pytest.raises(
        UserError, match=rf"^checkpoint_dir: .* holds {name} of run former, .*ended\. N"
    ):
        resolve_checkpoint_paths(settings, "new")
    resolve_checkpoint_paths(settings, "former")  # its own
    continued = settings.replace(resume="auto")
    if name == "best.pt":
        with pytest.raises(UserError, match="Needed: another checkpoint_dir"):
            resolve_checkpoint_paths(continued, "new")
    else:
        assert resolve_checkpoint_paths(continued, "new")[1] == "former"
    other = tmp_path / "other"
    other.mkdir()
    write_last(content("third"), other)
    with pytest.raises(UserError, match="of run former"):
        resolve_checkpoint_paths(settings.replace(resume=str(other)), "new")


def leave(settings: Config, run_id: str, *, finished: bool = False) -> Path:
    """What a training in checkpoints/<run_id> leaves after its first checkpoint."""
    settings = settings.replace(checkpoint_dir="auto", resume="none")
    settings = resolve_checkpoint_dir(settings, run_id)
    with hold_folder(settings, run_id) as hold:
        hold.begin()
        write_last(content(run_id), Path(settings.checkpoint_dir))
        if finished:
            hold.finish()
    return Path(settings.checkpoint_dir)


def test_checkpoints_of_a_training_that_has_ended_are_kept_under_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Config(checkpoint_dir=str(tmp_path))
    names = ["best.pt", "last.pt"]
    for run_id, former in (("1", None), ("2", "1"), ("3", "2"), ("2", "3"), ("4", "2")):
        with hold_folder(settings, run_id) as hold:
            resolve_checkpoint_paths(settings, run_id, hold=hold)
            assert not list(tmp_path.glob("*.pt"))
            if former:
                assert f"checkpoints of run {former}, whose" in capsys.readouterr().out
            hold.begin()
            for name in names:
                write_checkpoint(content(run_id), tmp_path / name)
            if run_id != "4":
                hold.finish()
    kept = {folder.name: folder for folder in tmp_path.glob("run-*")}
    assert sorted(kept) == ["run-1", "run-2", "run-2-2", "run-3"]
    assert all(sorted(p.name for p in folder.iterdir()) == names for folder in kept.values())
    assert run_of(kept["run-3"] / "best.pt") == "3"
    # A training that is refused does not make the one before look ended, or not ended.
    for _ in range(2):
        with hold_folder(settings, "5") as hold, pytest.raises(UserError, match="of run 4, whose"):
            resolve_checkpoint_paths(settings, "5", hold=hold)


def test_auto_continues_the_interrupted_training_of_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("annotations.json").write_text("{}")
    settings = Config(resume="auto", annotations="annotations.json")
    assert resolve_checkpoint_dir(settings, "new").checkpoint_dir == "checkpoints/new"
    leave(settings, "done", finished=True)
    leave(settings.replace(lr=0.5), "other settings")
    assert find_interrupted(training_identity(settings)) is None
    interrupted = leave(settings, "interrupted")
    # What does not change the result, and where it runs, may differ.
    same = settings.replace(num_workers=3, save_every=2, nproc_per_node=2, data_path="elsewhere")
    resolved, former = resolve_checkpoint_paths(same, "new")
    assert resolved.checkpoint_dir == str(interrupted) == str(ROOT / "interrupted")
    assert (resolved.resume, former) == (str(interrupted / "last.pt"), "interrupted")
    # Without resume the directory is that of the run.
    fresh = resolve_checkpoint_dir(settings.replace(resume="none"), "new")
    assert fresh.checkpoint_dir == "checkpoints/new"
    Path("annotations.json").write_text('{"other": "clips"}')
    assert find_interrupted(training_identity(settings)) is None
