"""Which checkpoint is resumed, which is refused, and what a crash while writing leaves."""

import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import append_entry, read_entries
from k400tiny_lib.models.checkpoint import newest_checkpoint, read_training_state, write_last
from k400tiny_lib.tracking.runs import RESUMED_FROM_TAG, link_run
from k400tiny_lib.tracking.uploader import MetricsUploader
from k400tiny_lib.training.reporting import add_earlier_epochs
from k400tiny_lib.training.resuming import changes_since, check_resumable, resolve_checkpoint_paths
from k400tiny_lib.training.worker import run
from tests.helpers.training import CPU, annotate, build_slim, config, make_job

CATEGORIES = {"a": 0, "b": 1}


def content(updates: int, run_id: str = "run", **parameters: Any) -> dict[str, Any]:
    return {
        "model": {"fc.weight": torch.full((2, 5000), float(updates))},
        "epoch": 0,
        "config": Config(**parameters).to_dict(),
        "categories": CATEGORIES,
        "run_id": run_id,
        "processes": [{}],
        "updates": updates,
    }


def two_checkpoints(folder: Path) -> None:
    folder.mkdir()
    for updates in (1, 2):
        write_last(content(updates), folder)


def updates_of(config: Config) -> int:
    return int(read_training_state(Path(config.resume))["updates"])


def test_a_checkpoint_dir_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = Config(checkpoint_dir=str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"^checkpoint_dir: .*file .*written to: File exists"):
        resolve_checkpoint_paths(config, "run")


def test_auto_continues_the_newest_and_skips_a_truncated_one_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    two_checkpoints(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]
    auto = Config(resume="auto", checkpoint_dir=str(folder))

    def resolve(config: Config) -> tuple[Config, str | None]:
        return resolve_checkpoint_paths(config, "new run")

    assert updates_of(resolve(auto)[0]) == 2
    data = (folder / "last.pt").read_bytes()
    (folder / "last.pt").write_bytes(data[: len(data) // 2])
    resolved, run_id = resolve(auto)
    assert (updates_of(resolved), run_id) == (1, "run")
    warning = capsys.readouterr().err
    assert warning.startswith("warning: skipped, ")
    assert str(folder / "last.pt") in warning
    assert "Traceback" not in warning
    # The same for the folder by its path; the file by its path is what was asked for, or nothing.
    assert updates_of(resolve(auto.replace(resume=str(folder)))[0]) == 1
    with pytest.raises(UserError, match=r"^resume: .*last\.pt is not a readable checkpoint"):
        resolve(auto.replace(resume=str(folder / "last.pt")))
    empty = auto.replace(checkpoint_dir=str(tmp_path / "none"))
    assert resolve(empty) == (empty.replace(resume="none"), None)
    with pytest.raises(UserError, match=r"^resume: .* holds no usable checkpoint"):
        resolve(auto.replace(resume=str(tmp_path)))


def test_checkpoints_are_kept_in_a_directory_of_the_run_unless_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    resolved, _ = resolve_checkpoint_paths(Config(checkpoint_dir="auto"), "0123")
    assert resolved.checkpoint_dir == "checkpoints/0123"
    assert Path("checkpoints/0123").is_dir()


@pytest.mark.parametrize("call", range(3))
def test_a_crash_at_any_moment_of_writing_leaves_a_usable_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    folder = tmp_path / "checkpoints"
    two_checkpoints(folder)
    calls = []

    def crash_or(action: Any) -> Any:
        def step(*arguments: Any) -> Any:
            calls.append(action)
            if len(calls) == call + 1:
                if action is torch.save:
                    arguments[1].write(b"half")
                raise KeyboardInterrupt
            return action(*arguments)

        return step

    monkeypatch.setattr(torch, "save", crash_or(torch.save))
    monkeypatch.setattr(Path, "replace", crash_or(Path.replace))
    with pytest.raises(KeyboardInterrupt):
        write_last(content(3), folder)
    monkeypatch.undo()
    newest = newest_checkpoint(folder)
    assert newest is not None
    assert read_training_state(newest)["updates"] == 2
    write_last(content(4), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["last.pt", "previous.pt"]


def test_a_restart_continues_checkpoints_of_its_own_run_only(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_last(content(1, "own"), folder)
    write_last(content(9, "other"), folder)
    newest = newest_checkpoint(folder, "own")
    assert newest is not None
    assert read_training_state(newest)["run_id"] == "own"
    assert newest_checkpoint(folder, "third") is None


def test_what_affects_the_result_and_has_changed_is_named() -> None:
    same = Config(num_workers=1, nproc_per_node=4, print_interval=10)
    assert changes_since(content(1), same, world_size=1) == []
    other = Config(lr=0.5, grad_accum_steps=2)
    changes = changes_since(content(1), other, world_size=2)
    assert sorted(changes) == ["grad_accum_steps 1 -> 2", "lr 0.01 -> 0.5", "world size 1 -> 2"]


def test_a_checkpoint_of_another_training_is_refused_by_the_difference(tmp_path: Path) -> None:
    check_resumable(content(1), Config(lr=0.5), CATEGORIES)
    with pytest.raises(UserError, match=r"^resume: .*model=r3d_18, this run has model=r2plus1d_18"):
        check_resumable(content(1, model="r3d_18"), Config(), CATEGORIES)
    with pytest.raises(UserError, match=r"^resume: .*optimizer=adamw, this run has optimizer=sgd"):
        check_resumable(content(1, optimizer="adamw"), Config(), CATEGORIES)
    with pytest.raises(UserError, match=r"^resume: the checkpoint does not know .* first 'c'"):
        check_resumable(content(1), Config(), CATEGORIES | {"c": 2})
    with pytest.raises(UserError, match=r"^resume: the checkpoint has classes .* first 'b'"):
        check_resumable(content(1), Config(), {"a": 0})
    with pytest.raises(UserError, match=r"^resume: .* head has 2 classes, this run's has 5 "):
        check_resumable(content(1), Config(num_classes=5), CATEGORIES)
    unscaled = content(1, amp="off") | {"scaler": {}}
    check_resumable(unscaled, Config(amp="bf16"), CATEGORIES)
    with pytest.raises(UserError, match=r"^resume: .* amp=off and lacks .* amp=fp16 continues"):
        check_resumable(unscaled, Config(amp="fp16"), CATEGORIES)
    # Before the frames are packed and the processes started, not only in them.
    write_last(content(1, model="r3d_18"), tmp_path)
    settings = Config(resume="auto", checkpoint_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"^resume: .*model=r3d_18"):
        resolve_checkpoint_paths(settings, "new", CATEGORIES)


def test_a_resumed_run_goes_on_with_the_curves_of_the_former(
    store: str, tiny_data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    annotations = annotate(tiny_data[0], num_val=2, num_train=4)
    small = config(tiny_data[0], tmp_path / "a", num_epochs=1, model="mc3_18", scheduler="constant")
    run(make_job(small, annotations, "former"), CPU, build_slim)

    longer = small.replace(
        num_epochs=2, checkpoint_dir=str(tmp_path / "b"), resume=str(tmp_path / "a")
    )
    resolved, former = resolve_checkpoint_paths(longer, "new run")
    assert former == "former"
    with mlflow.start_run() as active:
        link_run(former, "none")
    job = make_job(resolved, annotations, active.info.run_id)
    run(job, CPU, build_slim)
    changed = "resume: changed since the checkpoint: num_epochs 1 -> 2\n"
    assert capsys.readouterr().out.count(changed) == 1
    assert (tmp_path / "b" / "best.pt").exists()
    MetricsUploader(active.info.run_id, job.metrics_log).send()
    client = MlflowClient()
    history = client.get_metric_history(active.info.run_id, "train_loss")
    assert [m.step for m in history] == [1, 2]
    [(first, _)] = read_entries(tmp_path / "a" / "metrics-former.jsonl")
    assert (history[0].value, history[0].timestamp) == (
        first.metrics["train_loss"],
        first.timestamp,
    )
    assert client.get_run(active.info.run_id).data.tags[RESUMED_FROM_TAG] == "former"

    # Within an epoch other batches would be other clips.
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    state = read_training_state(tmp_path / "a" / "last.pt")
    write_last(state | {"finished_epochs": 0, "batch": 1}, tmp_path / "c")
    other = small.replace(batch_size=2, resume=str(tmp_path / "c" / "last.pt"))
    with pytest.raises(UserError, match=r"^resume: .* processes 4 \(here 2\)"):
        run(make_job(other, annotations, "other"), CPU, build_slim)


def test_epochs_before_the_checkpoint_are_added_once_whatever_its_age(tmp_path: Path) -> None:
    former, log = tmp_path / "former.jsonl", tmp_path / "metrics.jsonl"
    for epoch in (1, 2):
        append_entry(former, {"loss": float(epoch)}, epoch)
    text = former.read_text()
    add_earlier_epochs(log, {"journal": text})  # its name in older checkpoints
    add_earlier_epochs(log, {"metrics_log": text})
    assert log.read_text() == text


def test_nodes_point_to_the_parent_that_is_named(store: str) -> None:
    client = MlflowClient()
    parent = client.create_run("0").info.run_id
    with mlflow.start_run() as node:
        link_run(None, parent)
        with pytest.raises(UserError, match=r"^parent_run: .* has no run nothing"):
            link_run(None, "nothing")
    assert client.get_run(node.info.run_id).data.tags["mlflow.parentRunId"] == parent
