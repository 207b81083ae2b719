"""What training leaves behind on its way: checkpoints, the journal, one line of progress."""

import json
import os
import time
from pathlib import Path
from typing import Any

from k400tiny_lib.config import Config
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.metrics_log import Journal, companion_folder, read_entries
from k400tiny_lib.models.checkpoint import BEST, write_checkpoint, write_last
from k400tiny_lib.training.loop import Interrupted, Trainer
from k400tiny_lib.training.progress import memory_gb, progress_line
from k400tiny_lib.training.sample_predictions import save_predictions
from k400tiny_lib.training.state import gather_state


class Reporter:
    """What happens after an epoch and between; rank 0 writes, the others give it their state."""

    def __init__(
        self,
        config: Config,
        run_id: str,
        journal: Path,
        categories: dict[str, int],
        process: Process,
    ) -> None:
        self.config = config
        self.run_id = run_id
        self.categories = categories
        self.journal = Journal(journal)
        self.folder = Path(config.checkpoint_dir)
        self.epoch_start = self.last_save = time.monotonic()
        self.reported = _reported(journal) if process.is_main else set()

    def __call__(self, trainer: Trainer, metrics: dict[str, float], is_best: bool) -> None:
        """Report an epoch; write it where it is the best, or due."""
        seconds = time.monotonic() - self.epoch_start
        self.epoch_start = time.monotonic()
        if trainer.process.is_main:
            memory = memory_gb(trainer.process.device)
            metrics = metrics | {"epoch_seconds": seconds, "memory_gb": memory}
            if is_best:
                content = self._content(trainer) | {"val_acc1": metrics["val_acc1"]}
                write_checkpoint(content, self.folder / BEST)
            # Before the checkpoint, which carries the journal along. After a crash between the two
            # the epoch is trained again, and gives the same metrics.
            if trainer.epoch not in self.reported:
                folder = companion_folder(self.journal.path)
                images = save_predictions(trainer, self.categories, folder)
                self.journal.log_metrics(metrics, trainer.epoch, images)
                self.reported.add(trainer.epoch)
        if trainer.epoch % self.config.save_every == 0 or trainer.finished:
            self.save(trainer)
        if trainer.process.is_main:
            line = progress_line(trainer.epoch, self.config.num_epochs, metrics, is_best, seconds)
            print(line, flush=True)

    def after_update(self, trainer: Trainer) -> None:
        """Write the state when it is time; at a signal write it and stop, all processes together.

        Raises:
            Interrupted: on every process, once the state is written.
        """
        minutes = (time.monotonic() - self.last_save) / 60
        by_clock = trainer.process.is_main and 0 < self.config.save_every_minutes <= minutes
        due, stop = trainer.process.anywhere(by_clock, trainer.stop())
        if due or stop:
            self.save(trainer)
        if stop:
            if trainer.process.is_main:
                print(
                    f"stopped by a signal in epoch {trainer.epoch + 1}, after batch "
                    f"{trainer.batch}/{len(trainer.train_loader)}; -P resume=auto "
                    f"-P checkpoint_dir={self.folder} continues there",
                    flush=True,
                )
            raise Interrupted

    def save(self, trainer: Trainer) -> None:
        """Write last.pt; every process must call it."""
        state = gather_state(trainer)
        if trainer.process.is_main:
            journal = self.journal.path
            history = {"journal": journal.read_text() if journal.exists() else ""}
            write_last(self._content(trainer) | state | history, self.folder)
        self.last_save = time.monotonic()

    def _content(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "model": trainer.evaluated_model.state_dict(),
            "epoch": trainer.epoch,
            "config": self.config.to_dict(),
            "categories": self.categories,
            "run_id": self.run_id,
        }


def continue_journal(journal: Path, former: str) -> None:
    """Put the epochs of a resumed run in front, so that its curves go on in this one.

    Args:
        journal: of this run.
        former: the text of the journal as the checkpoint holds it.
    """
    known = _reported(journal)
    with journal.open("a") as file:
        for line in former.splitlines():
            record = json.loads(line)
            if record["step"] not in known:
                kept = {key: record[key] for key in ("step", "timestamp", "metrics")}
                file.write(json.dumps(kept) + "\n")


def _reported(journal: Path) -> set[int]:
    """The epochs of a journal; a line that a crash has cut short is taken away."""
    entries = list(read_entries(journal))
    if journal.exists():
        os.truncate(journal, entries[-1][1] if entries else 0)
    return {entry.step for entry, _ in entries}
