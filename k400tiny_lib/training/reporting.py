"""Saves checkpoints, appends to the metrics log and prints a line per epoch."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from k400tiny_lib.config.value_types import HEAD
from k400tiny_lib.console import duration
from k400tiny_lib.files import writing_to
from k400tiny_lib.metrics_log import append_entry, attachments_dir, read_entries
from k400tiny_lib.models.checkpoint import BEST, write_checkpoint, write_last
from k400tiny_lib.models.frozen import learning_state
from k400tiny_lib.training.sample_predictions import save_predictions
from k400tiny_lib.training.state import TrainState, gather_state


class Pause:
    """Times costly actions so that they take about a tenth of the time."""

    def __init__(self) -> None:
        self.end = 0.0

    def is_over(self) -> bool:
        """Whether the last action is nine times as long ago as it took."""
        return time.monotonic() >= self.end

    @contextmanager
    def after(self) -> Iterator[None]:
        """Start a pause at the end of the block, which is the action."""
        start = time.monotonic()
        yield
        now = time.monotonic()
        self.end = now + 9 * (now - start)


class Reporter:
    """Saves and reports during training; rank 0 writes, the others only give it their state.

    Epochs on kept features take milliseconds, in which no checkpoint of a whole model is written:
    where only the head learns, checkpoints and images wait for a `Pause`. A last.pt that is
    written, by the clock or at a signal, finds the best.pt that it claims beside it.
    """

    def __init__(
        self, state: TrainState, run_id: str, metrics_log: Path, categories: dict[str, int]
    ) -> None:
        self.config = state.config
        self.run_id = run_id
        self.categories = categories
        self.metrics_log = metrics_log
        self.folder = Path(state.config.checkpoint_dir)
        self.is_main = state.process.is_main
        self.epoch_start = self.last_save = time.monotonic()
        self.reported = _logged_epochs(metrics_log) if self.is_main else set()
        self.may_wait = state.config.train_layers == HEAD
        self.save_pause, self.image_pause = Pause(), Pause()
        self.best: dict[str, Any] | None = None  # the content of best.pt until it is written

    def on_epoch(self, state: TrainState, metrics: dict[str, float], is_best: bool) -> None:
        """Report an epoch, and save it if it is the best or due; every process must call it."""
        seconds = time.monotonic() - self.epoch_start
        self.epoch_start = time.monotonic()
        if is_best:
            state.best_run = self.run_id
        with writing_to(self.folder, "checkpoint_dir"):
            metrics = self._write_epoch(state, metrics, is_best, seconds)
        if self.is_main:
            line = progress_line(state.epoch, self.config.num_epochs, metrics, is_best, seconds)
            print(line, flush=True)

    def _write_epoch(
        self, state: TrainState, metrics: dict[str, float], is_best: bool, seconds: float
    ) -> dict[str, float]:
        """Write best.pt, the log and last.pt; returns the metrics as logged."""
        if self.is_main:
            memory = memory_gb(state.process.device)
            metrics = metrics | {"epoch_seconds": seconds, "memory_gb": memory}
            if is_best:
                self.best = self._content(state) | {"val_acc1": metrics["val_acc1"]}
                self._keep_best(state)
            # Before the checkpoint, which holds a copy of the log. After a crash between the two
            # the epoch is trained again, with the same metrics.
            if state.epoch not in self.reported:
                folder = attachments_dir(self.metrics_log)
                images = {}
                if not self.may_wait or self.image_pause.is_over() or state.finished:
                    with self.image_pause.after():
                        images = save_predictions(state, self.categories, folder)
                append_entry(self.metrics_log, metrics, state.epoch, images)
                self.reported.add(state.epoch)
        is_due = state.epoch % self.config.save_every == 0
        if is_due and self.may_wait:
            [is_due] = state.process.any_rank(self.is_main and self.save_pause.is_over())
        if is_due or state.finished:
            self.save(state)
        return metrics

    def save_due(self) -> bool:
        """Whether `save_every_minutes` have passed since the last save, by the clock of rank 0."""
        minutes = (time.monotonic() - self.last_save) / 60
        return self.is_main and 0 < self.config.save_every_minutes <= minutes

    def save(self, state: TrainState) -> None:
        """Write last.pt; every process must call it."""
        with self.save_pause.after():
            content = gather_state(state)
            if self.is_main:
                log = self.metrics_log
                content["metrics_log"] = log.read_text() if log.exists() else ""
                with writing_to(self.folder, "checkpoint_dir"):
                    self._write_best()  # first: last.pt claims it
                    write_last(self._content(state) | content, self.folder)
        self.last_save = time.monotonic()

    def _keep_best(self, state: TrainState) -> None:
        """Write best.pt, or keep it in memory until last.pt is written."""
        if not self.may_wait:
            self._write_best()
            return
        assert self.best is not None
        learning = learning_state(state.evaluated_model, self.config.train_layers)
        self.best["model"] |= {name: tensor.clone() for name, tensor in learning.items()}

    def _write_best(self) -> None:
        if self.best is not None:
            write_checkpoint(self.best, self.folder / BEST)
            self.best = None

    def _content(self, state: TrainState) -> dict[str, Any]:
        return {
            "model": state.evaluated_model.state_dict(),
            "epoch": state.epoch,
            "config": self.config.to_dict(),
            "categories": self.categories,
            "run_id": self.run_id,
        }


def add_earlier_epochs(metrics_log: Path, checkpoint: Mapping[str, Any]) -> None:
    """Append the epochs of the resumed checkpoint to the log of this run, each only once."""
    # Older checkpoints call it "journal".
    text = checkpoint["metrics_log" if "metrics_log" in checkpoint else "journal"]
    logged = _logged_epochs(metrics_log)
    with metrics_log.open("a") as file:
        for line in text.splitlines():
            record = json.loads(line)
            if record["step"] not in logged:
                kept = {key: record[key] for key in ("step", "timestamp", "metrics")}
                file.write(json.dumps(kept) + "\n")


def _logged_epochs(metrics_log: Path) -> set[int]:
    """The epochs of a metrics log; removes a last line that a crash has cut short."""
    entries = list(read_entries(metrics_log))
    if metrics_log.exists():
        os.truncate(metrics_log, entries[-1][1] if entries else 0)
    return {entry.step for entry, _ in entries}


def memory_gb(device: torch.device) -> float:
    """Memory in 10^9 bytes: the peak use of a GPU so far, or the current use of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss / 1e9)


def progress_line(
    epoch: int, num_epochs: int, metrics: Mapping[str, float], is_best: bool, seconds: float
) -> str:
    """One line for an epoch, with the time left if the others take as long; the best has a star.

    The metrics are those of `loop.train_epoch` and `loop.validate`, and memory_gb.
    """
    top5 = f" acc5 {metrics['val_acc5']:5.1f}" if "val_acc5" in metrics else ""
    return (
        f"epoch {epoch:3d}/{num_epochs}"
        f"  train loss {metrics['train_loss']:.3f} acc1 {metrics['train_acc1']:5.1f}"
        f"  val loss {metrics['val_loss']:.3f} acc1 {metrics['val_acc1']:5.1f}"
        f"{'*' if is_best else ' '}{top5}"
        f"  {metrics['clips_per_second']:6.1f} clips/s"
        f"  waiting for data {metrics['data_time_fraction']:4.0%}"
        f"  {metrics['memory_gb']:.1f} GB"
        f"  {duration(seconds * (num_epochs - epoch))} left"
    )
