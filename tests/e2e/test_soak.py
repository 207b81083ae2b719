"""`main` is killed at random moments and started again, until it is left in peace.

K400TINY_SOAK_ROUNDS sets the number of kills (20 unless set), K400TINY_SOAK_SEED their moments.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.media.video import Image
from k400tiny_lib.models.checkpoint import read_training_state
from tests.helpers.project import Checkout, check_out
from tests.helpers.videos import encode

ROUNDS = int(os.environ.get("K400TINY_SOAK_ROUNDS", "20"))
SEED = int(os.environ.get("K400TINY_SOAK_SEED", "0"))
ENDED = "ended by itself"
MARKER = "K400TINY_SOAK"  # environment variable by which all processes of the test are found
SETTINGS = {
    "model": "x3d_s",
    "clip_len": 4,
    "resize_size": 36,
    "crop_size": 32,
    "batch_size": 4,
    "num_epochs": 16,
    "num_workers": 1,
    "num_clips": 1,
    "save_every_minutes": 0.001,
    "ema_decay": 0.5,
    "dropout": 0.2,
    "augmentation": "standard",
    "warmup_epochs": 1,
    "quantize": "none",
    "seed": 3,
    "resume": "auto",
}


def pictures(name: str, num_frames: int = 8) -> list[Image]:
    """Smooth noise that differs with the name."""
    rng = np.random.default_rng(list(name.encode()))
    coarse = rng.integers(0, 256, (num_frames, 5, 6, 3), dtype=np.uint8)
    return [cv2.resize(picture, (64, 48)) for picture in coarse]


class Soak:
    """Two checkouts with the same videos: one is disturbed, the other not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for label in ("growing", "sliding", "turning"):
            (folder / "videos" / label).mkdir(parents=True)
            for number in range(8):
                path = folder / "videos" / label / f"{label}{number}.mp4"
                encode(path, pictures(f"{path.stem}"))
        self.marker = f"{os.getpid()}-{folder.name}"
        self.log = (folder / "log").open("a")
        self.number = 0

    def start(self, checkout: Checkout, use_cache: bool = True) -> "subprocess.Popen[bytes]":
        self.number += 1
        print(f"--- start {self.number} ---", file=self.log, flush=True)
        command = checkout.command(
            data_path=self.folder / "videos", use_cache=use_cache, **SETTINGS
        )
        temporary = self.temporary(checkout)
        temporary.mkdir(exist_ok=True)
        environment = checkout.environment(TMPDIR=str(temporary), **{MARKER: self.marker})
        return subprocess.Popen(
            command,
            env=environment,
            cwd=self.folder,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def run_in_peace(self, checkout: Checkout) -> None:
        assert self.start(checkout).wait() == 0, (self.folder / "log").read_text()
        assert not self.wait_until_all_are_gone(10)

    def temporary(self, checkout: Checkout) -> Path:
        return self.folder / f"t{checkout.folder.name}"

    def processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self.marker:
                    yield process

    def wait_until_all_are_gone(self, seconds: float) -> list[list[str]]:
        """The command lines of the processes that are left after some seconds."""
        end = time.monotonic() + seconds
        while (left := list(self.processes())) and time.monotonic() < end:
            time.sleep(0.2)
        lines = []
        for process in left:
            with contextlib.suppress(psutil.Error):
                lines.append(process.cmdline())
        return lines

    def disturb(self, main: "subprocess.Popen[bytes]", rng: random.Random, longest: float) -> str:
        """Send a random signal after at most `longest` seconds, unless `main` has ended before."""
        moment, choice = rng.uniform(0, longest), rng.randrange(6)
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert main.wait(moment) == 0, (self.folder / "log").read_text()
            return ENDED
        if choice < 3:  # Ctrl-C, systemd, the end of a container
            number = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)[choice]
            with contextlib.suppress(ProcessLookupError):
                os.killpg(main.pid, number)
            return f"{number.name} to all after {moment:.1f} s"
        if choice == 3:  # kill <pid>
            main.terminate()
            return f"SIGTERM to mlflow run after {moment:.1f} s"
        victim = rng.choice(sorted(self.processes(), key=lambda p: p.create_time()))
        with contextlib.suppress(psutil.Error):
            line = " ".join(victim.cmdline())[-150:]
            victim.kill()
        return f"SIGKILL to {victim.pid} ({line}) after {moment:.1f} s"


def checkpoints(checkout: Checkout) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What best.pt and last.pt of the finished trainings hold."""
    states = {p: read_training_state(p) for p in checkout.folder.glob("checkpoints/*/last.pt")}
    return [
        (torch.load(path.with_name("best.pt"), weights_only=True), state)
        for path, state in states.items()
        if state["finished_epochs"] == SETTINGS["num_epochs"]
    ]


def assert_same(actual: Any, expected: Any) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected)
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert_same(actual[name], value)
    else:
        assert actual == expected


@pytest.fixture
def soak(tmp_path: Path) -> Iterator[Soak]:
    soak = Soak(tmp_path)
    yield soak
    for process in soak.processes():
        process.kill()


@pytest.mark.slow
def test_main_killed_at_random_moments_ends_as_if_undisturbed(soak: Soak, tmp_path: Path) -> None:
    peaceful, disturbed = (
        check_out(tmp_path / name, f"sqlite:///{tmp_path}/{name}.db") for name in ("p", "d")
    )
    begin = time.monotonic()
    soak.run_in_peace(peaceful)
    # Most of an undisturbed run; on a busy machine rather its beginning than a test of hours.
    longest = min(0.7 * (time.monotonic() - begin), 90.0)
    rng, use_cache = random.Random(SEED), True
    for number in range(ROUNDS):
        main = soak.start(disturbed, use_cache)
        what = soak.disturb(main, rng, longest)
        print(f"round {number}: {what}", flush=True)
        main.wait(120)
        use_cache = use_cache and what != ENDED  # all is done: now all over again
        left = soak.wait_until_all_are_gone(30)
        assert not left, f"after round {number} ({what}) these are left: {left}"
    soak.run_in_peace(disturbed)

    [(expected_best, expected_last)], trained = map(checkpoints, (peaceful, disturbed))
    assert trained
    for best, last in trained:
        for part in ("model", "epoch", "val_acc1"):
            assert_same(best[part], expected_best[part])
        for part in ("model", "raw_model", "average", "optimizer", "updates"):
            assert_same(last[part], expected_last[part])

    runs = MlflowClient(disturbed.store).search_runs(["0"], max_results=1000)
    statuses = {run.info.status for run in runs}
    assert statuses <= {"FINISHED", "FAILED"}
    print(len(runs), "runs,", len(trained), "finished trainings")
    partial = [p for p in tmp_path.rglob("*") if ".part" in p.name]
    assert not partial
    assert not list(disturbed.folder.glob(".k400tiny/running/*"))
    for checkout in (peaceful, disturbed):
        # `mlflow run` makes an empty directory that it never deletes, a killed Python pymp-*, and
        # ONNX Runtime the file .ses.
        left = [p for p in soak.temporary(checkout).iterdir() if p.name != ".ses"]
        assert not [p for p in left if not p.match("tmp*") and not p.match("pymp-*")]
        assert not [p for p in left if list(p.iterdir())]
