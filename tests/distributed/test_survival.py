"""Training that is killed, stopped or restarted ends with the undisturbed run's weights."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from k400tiny_lib.distributed.launch import launch
from k400tiny_lib.distributed.process import EXIT_CODE, Process
from k400tiny_lib.metrics_log import read_entries
from k400tiny_lib.models.checkpoint import read_training_state
from k400tiny_lib.training.loop import Interrupted, fit
from k400tiny_lib.training.reporting import Reporter
from k400tiny_lib.training.worker import TrainingJob, make_train_state, run
from tests.helpers.training import (
    CPU,
    annotate,
    build_slim,
    config,
    make_job,
    run_group,
    run_spawned,
    start,
)

EACH_UPDATE = 1e-6  # minutes between two writes
# Everything that has a state is switched on.
DELICATE: dict[str, Any] = {
    "model": "mc3_18",
    "num_epochs": 5,
    "batch_size": 2,
    "ema_decay": 0.5,
    "dropout": 0.2,
    "lr": 1e-3,
    "warmup_epochs": 1.0,
    "augmentation": "standard",
}


def assert_same_end(folder: Path, reference: Path) -> None:
    """Every tensor of the last checkpoints is the same to the bit, and so are the metrics."""
    actual, expected = (read_training_state(f / "last.pt") for f in (folder, reference))
    for part in ("model", "raw_model", "average"):
        assert_equal_states(actual[part], expected[part])
    assert actual["updates"] == expected["updates"]
    assert_equal_states(
        {str(k): v["momentum_buffer"] for k, v in actual["optimizer"]["state"].items()},
        {str(k): v["momentum_buffer"] for k, v in expected["optimizer"]["state"].items()},
    )
    for name in ("train_loss", "train_acc1", "val_loss", "val_acc1", "lr"):
        assert curve(actual, name) == curve(expected, name)


def assert_equal_states(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(actual[name], tensor), name


def curve(checkpoint: Mapping[str, Any], name: str) -> list[float]:
    return [json.loads(line)["metrics"][name] for line in checkpoint["metrics_log"].splitlines()]


def train(job: TrainingJob) -> None:
    """What a worker process does, in a process group of one."""
    try:
        run(job, CPU, build_slim)
    except Interrupted:
        sys.exit(EXIT_CODE)


def listens(process: BaseProcess) -> bool:
    """Whether a process has a handler for SIGTERM by now."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
    return bool(caught and int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def send(process: BaseProcess, number: int) -> None:
    assert process.is_alive(), "training was over too early"
    assert process.pid
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (EXIT_CODE if number == signal.SIGTERM else -number)


def kill(job: TrainingJob, rng: random.Random) -> None:
    """Train until up to three checkpoints are written, and up to 0.05 s on: anywhere."""
    last = Path(job.config.checkpoint_dir) / "last.pt"
    process = start(train, job)
    for _ in range(rng.randint(0, 3)):
        before = last.stat().st_mtime_ns if last.exists() else 0
        while process.is_alive() and (not last.exists() or last.stat().st_mtime_ns == before):
            time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.05))
    send(process, signal.SIGKILL)


def train_together(process: Process, folder: Path, job: TrainingJob) -> None:
    run(job, process, build_slim)


def train_with_and_without_signals(data_path: Path, folder: Path) -> None:
    """Train undisturbed, under SIGKILL and under SIGTERM, all forked from one process."""
    rng = random.Random(0)
    annotations = annotate(data_path, num_val=2, num_train=16)

    def job(name: str, **changes: Any) -> TrainingJob:
        return make_job(config(data_path, folder / name, **(DELICATE | changes)), annotations)

    undisturbed = job("undisturbed", save_every_minutes=0.0)
    killed = job("killed", save_every_minutes=EACH_UPDATE)
    stopped = job("stopped", save_every_minutes=0.0, save_every=100)  # written at signals only
    for _ in range(10):
        kill(killed, rng)
    for _ in range(2):
        process = start(train, stopped)
        while process.is_alive() and not listens(process):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        send(process, signal.SIGTERM)
    for each in (undisturbed, killed, stopped):
        process = start(train, each)
        process.join()
        assert process.exitcode == 0
    run_group(2, train_together, folder, job("two undisturbed", save_every_minutes=0.0))


@pytest.fixture(scope="module")
def survivors(tiny_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint directories of `train_with_and_without_signals`."""
    folder = tmp_path_factory.mktemp("survivors")
    run_spawned(train_with_and_without_signals, tiny_data[0], folder)
    return folder


def test_ten_kills_at_random_moments_change_no_bit(survivors: Path) -> None:
    assert_same_end(survivors / "killed", survivors / "undisturbed")


def test_two_sigterms_at_random_moments_change_no_bit(survivors: Path) -> None:
    assert_same_end(survivors / "stopped", survivors / "undisturbed")


@pytest.mark.slow
def test_a_worker_killed_under_torchrun_is_restarted_and_changes_no_bit(
    survivors: Path, tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as in the run to compare with
    killed: list[int] = []

    def kill_rank_1() -> None:
        if killed or not (tmp_path / "last.pt").exists():
            return
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may have ended by itself
                if process.environ().get("RANK") == "1":
                    process.kill()
                    killed.append(process.pid)

    settings = config(
        tiny_data[0],
        tmp_path,
        nproc_per_node=2,
        max_restarts=1,
        save_every_minutes=EACH_UPDATE,
        **DELICATE,
    )
    job = make_job(settings, annotate(tiny_data[0], num_val=2, num_train=16))
    launch(job, kill_rank_1, module="tests.helpers.training", poll_seconds=0.02)
    assert killed
    assert_same_end(tmp_path, survivors / "two undisturbed")
    epochs = [entry.step for entry, _ in read_entries(job.metrics_log)]
    assert epochs == [1, 2, 3, 4, 5]  # no epoch twice


def test_a_signal_during_validation_ends_it_and_loses_nothing(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations = annotate(tiny_data[0], num_val=4, num_train=4)
    changes = DELICATE | {"num_epochs": 1}
    undisturbed = make_job(config(tiny_data[0], tmp_path / "a", **changes), annotations)
    run(undisturbed, CPU)
    stopped = make_job(config(tiny_data[0], tmp_path / "b", **changes), annotations)
    state = make_train_state(stopped.config, annotations, CPU)
    reporter = Reporter(state, "run", stopped.metrics_log, annotations.categories)
    state.stop = lambda: not state.evaluated_model.training  # from the first validation on
    with pytest.raises(Interrupted):
        fit(state, reporter.on_epoch, reporter.save)
    assert not stopped.metrics_log.exists()  # half a validation is no result
    run(stopped, CPU)
    assert_same_end(tmp_path / "b", tmp_path / "a")
