"""What the metrics say is what best.pt holds, however training was resumed."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import append_entry
from k400tiny_lib.models.checkpoint import read_checkpoint, write_checkpoint
from k400tiny_lib.training.resuming import fetch_best, resolve_checkpoint_paths
from k400tiny_lib.training.summary import summarize
from k400tiny_lib.training.worker import run
from tests.helpers.training import CPU, METRICS, annotate, build_small, config, make_job


@pytest.fixture(scope="module")
def former(tiny_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a training of two epochs; its best one has an impossible 100.5 %."""
    folder = tmp_path_factory.mktemp("former")
    train(tiny_data[0], folder, "former")
    for name in ("last.pt", "best.pt"):
        checkpoint = read_checkpoint(folder / name, "x")
        claimed = {"best_val_acc1": 100.5} if name == "last.pt" else {"val_acc1": 100.5}
        epoch = {"epoch": checkpoint["best_epoch"]} if name == "last.pt" else {}
        write_checkpoint(checkpoint | claimed, folder / name)
        assert not epoch or epoch["epoch"] == read_checkpoint(folder / "best.pt", "x")["epoch"]
    return folder


def train(data_path: Path, folder: Path, run_id: str, **changes: Any) -> Any:
    """Train, and return the results."""
    settings = config(data_path, folder, **changes)
    job = make_job(settings, annotate(data_path, num_val=4, num_train=8), run_id)
    settings, resumed_run = resolve_checkpoint_paths(settings, run_id)
    job = type(job)(settings, job.folder, run_id, None, resumed_run)
    run(job, CPU, build_small)
    return summarize(job.metrics_log, settings, run_id, resumed_run)


def agree(results: Any, folder: Path) -> None:
    best = read_checkpoint(folder / "best.pt", "x")
    assert results.metrics == {"best_epoch": best["epoch"], "best_val_acc1": best["val_acc1"]}
    assert f"val top-1 {best['val_acc1']:.1f} % after epoch {best['epoch']}" in results.headline


@pytest.mark.parametrize("beside", ["resumed", "in checkpoint_dir"])
def test_the_best_is_continued_where_its_file_is(
    tiny_data: tuple[Path, Path], tmp_path: Path, former: Path, beside: str
) -> None:
    resume, folder = tmp_path / "resume", tmp_path / "new"
    resume.mkdir()
    folder.mkdir()
    shutil.copy(former / "last.pt", resume)
    shutil.copy(former / "best.pt", resume if beside == "resumed" else folder)
    # The best.pt of another run, but the one that last.pt claims.
    job = {"num_epochs": 3, "resume": str(resume / "last.pt")}
    if beside == "resumed":
        results = train(tiny_data[0], folder, "new", **job)
    else:
        results = train(tiny_data[0], folder, "former", **job)
    assert results.metrics["best_val_acc1"] == 100.5
    agree(results, folder)


@pytest.mark.parametrize("left", ["nothing", "run_id", "epoch", "val_acc1", "damaged"])
def test_without_its_file_the_best_starts_anew_and_it_is_said(
    tiny_data: tuple[Path, Path],
    tmp_path: Path,
    former: Path,
    capsys: pytest.CaptureFixture[str],
    left: str,
) -> None:
    resume, folder = tmp_path / "resume", tmp_path / "new"
    resume.mkdir()
    shutil.copy(former / "last.pt", resume)
    best = read_checkpoint(former / "best.pt", "x")
    if left == "damaged":
        (resume / "best.pt").write_bytes(b"half")
    elif left != "nothing":
        other = {"run_id": "x", "epoch": 0, "val_acc1": 3.0}
        write_checkpoint(best | {left: other[left]}, resume / "best.pt")
    results = train(tiny_data[0], folder, "new", num_epochs=3, resume=str(resume / "last.pt"))
    said = f"resume: the best.pt of epoch {best['epoch']} (val_acc1 100.5 %) is not beside"
    assert capsys.readouterr().out.count(said) == 1
    assert results.metrics["best_epoch"] == 3
    agree(results, folder)


def test_nothing_left_to_train_is_said_truly(
    tiny_data: tuple[Path, Path], tmp_path: Path, former: Path
) -> None:
    resume = tmp_path / "resume"
    resume.mkdir()
    shutil.copy(former / "last.pt", resume)
    job = {"num_epochs": 1, "resume": str(resume / "last.pt")}
    message = r"^resume: .* has 2 finished epochs, so nothing is left .*best\.pt is not beside it"
    with pytest.raises(UserError, match=message):
        train(tiny_data[0], tmp_path / "new", "new", **job)
    shutil.copy(former / "best.pt", resume)
    results = train(tiny_data[0], tmp_path / "new", "new", **job)
    agree(results, tmp_path / "new")
    assert "2 epochs, no more were needed for num_epochs=1, in" in results.headline


def test_a_best_written_after_the_last_save_is_kept_until_that_epoch_comes_again(
    tiny_data: tuple[Path, Path], tmp_path: Path, former: Path
) -> None:
    folder = tmp_path / "new"
    shutil.copytree(former, folder)
    best = read_checkpoint(folder / "best.pt", "x")
    write_checkpoint(best | {"epoch": 3, "val_acc1": 101.0}, folder / "best.pt")
    # On other hardware the epoch may come out worse: then what best.pt holds counts.
    results = train(tiny_data[0], folder, "new", num_epochs=3, resume="auto")
    assert results.metrics == {"best_epoch": 3, "best_val_acc1": 101.0}
    agree(results, folder)


def test_the_best_of_another_training_is_not_logged(tmp_path: Path) -> None:
    log = tmp_path / "metrics-1.jsonl"
    append_entry(log, METRICS | {"val_acc1": 40.0}, 1)
    content = {"model": {}, "epoch": 1, "config": {}, "categories": {}}
    for other, score in (("2", 41.0), ("former", 40.0)):
        write_checkpoint(content | {"run_id": other, "val_acc1": score}, tmp_path / "best.pt")
        if other == "2":
            with pytest.raises(
                UserError, match=r"^checkpoint_dir: .*best\.pt is of run 2, epoch 1"
            ):
                summarize(log, Config(), "1")
        else:
            assert summarize(log, Config(), "1") is not None


def test_the_best_next_to_a_remote_checkpoint_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    (tmp_path / "remote" / "best.pt").write_bytes(b"best")
    asked = []

    def fetch(uri: str, parameter: str) -> Path:
        asked.append(uri)
        path = tmp_path / "remote" / uri.rpartition("/")[2]
        if "missing" in uri:
            raise UserError("resume: nothing there")
        return path

    for uri in ("auto", "none", "/local/last.pt", "s3://b/dir", "s3://missing/last.pt"):
        fetch_best(uri, tmp_path, fetch)
    assert asked == ["s3://missing/best.pt"]
    assert not (tmp_path / "best.pt").exists()
    fetch_best("s3://b/x/last.pt", tmp_path, fetch)
    assert (tmp_path / "best.pt").read_bytes() == b"best"
