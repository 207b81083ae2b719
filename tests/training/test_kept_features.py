"""Kept features under signals, crashes and several processes: the same files, the same head."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from k400tiny_lib.config import Config
from k400tiny_lib.data.loading.feature_cache import resolve_features
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.checkpoint import read_checkpoint, read_training_state
from k400tiny_lib.training import loop, reporting
from k400tiny_lib.training.loop import Interrupted
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import TrainingJob, run
from tests.helpers.training import (
    CPU,
    Small,
    annotate,
    build_small,
    config,
    make_job,
    run_group,
    run_spawned,
    start,
)

# Everything that has a state is switched on.
DELICATE: dict[str, Any] = {
    "train_layers": "head",
    "feature_views": 3,
    "num_epochs": 5,
    "dropout": 0.5,
    "ema_decay": 0.5,
    "augmentation": "standard",
    "lr": 0.1,
}

# Nothing that the number of processes changes.
PLAIN: dict[str, Any] = {"dropout": 0.0, "ema_decay": 0.0, "num_epochs": 2}


def job_for(data_path: Path, folder: Path, cache: str = "cache", **changes: Any) -> TrainingJob:
    annotations = annotate(data_path, num_val=3, num_train=16)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(
        data_path, folder, cache_dir=str(folder.parent / cache), **(DELICATE | changes)
    )
    job = make_job(settings, annotations)
    return TrainingJob(
        job.config, job.folder, job.run_id, frames_digest=resolve_features(settings, annotations)
    )


def views(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("view*.npy")}


def assert_same_end(folder: Path, reference: Path) -> None:
    """The same bits in the last and the best checkpoint, and the same metrics."""
    actual, expected = (read_training_state(f / "last.pt") for f in (folder, reference))
    for part in ("model", "raw_model"):
        for name, tensor in expected[part].items():
            assert torch.equal(actual[part][name], tensor), name
    for name in ("updates", "best_epoch", "best_val_acc1"):
        assert actual[name] == expected[name]
    best, expected_best = (read_checkpoint(f / "best.pt", "test") for f in (folder, reference))
    assert best["epoch"] == expected_best["epoch"] == expected["best_epoch"]
    assert all(torch.equal(best["model"][k], v) for k, v in expected_best["model"].items())


@pytest.fixture(scope="module")
def undisturbed(tiny_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run(job_for(tiny_data[0], folder), CPU, build_small)
    return folder


class Dying(Small):
    """`Small`, whose process is killed while it computes features."""

    computed = 0

    def forward(self, clips: Tensor) -> Tensor:
        self.computed += len(clips)
        if self.computed > 16 + 4:  # in the second of three views
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(clips)


def build_dying(config: Config, num_classes: int) -> nn.Module:
    return Dying(num_classes)


def test_killed_while_computing_whole_files_stay_and_the_rest_is_computed(
    tiny_data: tuple[Path, Path], tmp_path: Path, undisturbed: Path
) -> None:
    job = job_for(tiny_data[0], tmp_path / "run")
    process = start(run, job, CPU, build_dying)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    [whole] = (tmp_path / "cache").rglob("view*.npy")
    before = whole.stat().st_mtime_ns
    broken = whole.with_name("view0001.npy")
    broken.write_bytes(whole.read_bytes()[:-5])  # of a disk that has crashed
    run(job, CPU, build_small)
    assert whole.stat().st_mtime_ns == before
    assert views(tmp_path / "cache") == views(undisturbed.parent / "cache")
    assert_same_end(tmp_path / "run", undisturbed)


def test_a_stop_within_an_epoch_changes_no_bit(
    tiny_data: tuple[Path, Path], tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No pause is ever over: last.pt is written at the signal only.
    monkeypatch.setattr(reporting.Pause, "is_over", lambda pause: False)
    job = job_for(tiny_data[0], tmp_path / "run")
    update, updates = loop._update, 0

    def stopping(state: Any) -> None:
        nonlocal updates
        update(state)
        updates += 1
        if updates == 10:  # the second of four in the third epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "_update", stopping)
    with pytest.raises(Interrupted):
        run(job, CPU, build_small)
    stopped = read_training_state(tmp_path / "run" / "last.pt")
    assert (stopped["finished_epochs"], stopped["batch"]) == (2, 3)
    best = read_checkpoint(tmp_path / "run" / "best.pt", "test")
    assert best["epoch"] == stopped["best_epoch"]
    shutil.rmtree(tmp_path / "cache")  # computed again, to the bit
    run(job, CPU, build_small)
    assert_same_end(tmp_path / "run", undisturbed)


def test_short_epochs_do_not_wait_for_checkpoints_and_a_crash_finds_them_in_agreement(
    tiny_data: tuple[Path, Path], tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_for(tiny_data[0], tmp_path / "run")
    # Only the first pause is over: epoch 1 is saved, and no other before the last.
    monkeypatch.setattr(reporting.Pause, "is_over", lambda pause: pause.end == 0.0)
    validate = loop.validate

    def crashing(state: TrainState) -> dict[str, float]:
        if state.epoch == 3:
            raise InterruptedError
        return validate(state)

    monkeypatch.setattr(loop, "validate", crashing)
    with pytest.raises(InterruptedError):
        run(job, CPU, build_small)
    last = read_training_state(tmp_path / "run" / "last.pt")
    best = read_checkpoint(tmp_path / "run" / "best.pt", "test")
    assert last["epoch"] == last["best_epoch"] == best["epoch"] == 1
    monkeypatch.setattr(loop, "validate", validate)
    run(job, CPU, build_small)
    assert_same_end(tmp_path / "run", undisturbed)


def test_the_best_epoch_is_kept_though_later_ones_have_changed_the_weights(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate, accuracies = loop.validate, [10.0, 20.0, 90.0, 30.0, 40.0]
    monkeypatch.setattr(
        loop, "validate", lambda state: validate(state) | {"val_acc1": accuracies[state.epoch]}
    )
    monkeypatch.setattr(reporting, "save_predictions", lambda *arguments: {})
    for name in ("at once", "later"):
        pause_is_over = name == "at once"
        monkeypatch.setattr(reporting.Pause, "is_over", lambda pause, over=pause_is_over: over)
        run(job_for(tiny_data[0], tmp_path / name), CPU, build_small)
    assert read_checkpoint(tmp_path / "later" / "best.pt", "test")["epoch"] == 3
    assert_same_end(tmp_path / "later", tmp_path / "at once")


def test_features_that_are_not_finite_are_refused_and_not_kept(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    def build(config: Config, num_classes: int) -> nn.Module:
        model = Small(num_classes)
        model.norm.running_mean.fill_(-3e38)  # type: ignore[union-attr, operator]
        model.norm.weight.data.fill_(1e4)
        return model

    with pytest.raises(UserError, match=r"^amp: the backbone's features of clip v000_"):
        run(job_for(tiny_data[0], tmp_path / "run"), CPU, build)
    assert not views(tmp_path)


def test_a_cache_that_cannot_be_written_is_one_line(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cache_dir: .*file/.* cannot be written to"):
        job_for(tiny_data[0], tmp_path / "run", cache="file")


def train_on_separate_disks(process: Process, folder: Path, data_path: Path) -> None:
    """Each process is a node of its own: its directories are not those of the other."""
    folder /= f"disk {process.rank}"
    run(job_for(data_path, folder / "run", **PLAIN, batch_size=2), process, build_small)


def train_alone_and_in_groups(data_path: Path, folder: Path) -> None:
    reporting.save_predictions = lambda *arguments: {}  # takes a second
    run(job_for(data_path, folder / "alone" / "run", **PLAIN, batch_size=4), CPU, build_small)
    run_group(2, train_on_separate_disks, folder, data_path)
    # A node that has nothing yet takes the place of another.
    shutil.rmtree(folder / "disk 1")
    shutil.rmtree(folder / "disk 0" / "run")
    run_group(2, train_on_separate_disks, folder, data_path)


def test_processes_share_the_work_and_each_node_has_the_files(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    run_spawned(train_alone_and_in_groups, tiny_data[0], tmp_path)
    files, same, alone = (views(tmp_path / n / "cache") for n in ("disk 0", "disk 1", "alone"))
    assert files == same
    assert len(files) == len(alone) == 3
    head, expected = (
        read_training_state(tmp_path / name / "run" / "last.pt")["model"]
        for name in ("disk 0", "alone")
    )
    for name, tensor in expected.items():  # batches of other sizes round otherwise
        torch.testing.assert_close(head[name], tensor, rtol=1e-4, atol=1e-5)
