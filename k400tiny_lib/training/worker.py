"""One training process, as torchrun starts it: wires data, model and optimizer to the loop.

torchrun --nproc-per-node 2 -m k400tiny_lib.training.worker job.json
"""

import dataclasses
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.convolutions import fastest_form
from k400tiny_lib.data.annotations import Annotations, read_annotations
from k400tiny_lib.data.augmentation import no_flip_targets
from k400tiny_lib.data.loading import ClipDataset, make_loader, worker_count
from k400tiny_lib.data.packing import open_frames
from k400tiny_lib.errors import UserError
from k400tiny_lib.journal import Journal
from k400tiny_lib.model import build_model, load_backbone, pretrained_state
from k400tiny_lib.training.checkpoint import BEST, LAST, read_checkpoint, write_atomically
from k400tiny_lib.training.distributed import Process, process_group
from k400tiny_lib.training.loop import Trainer, fit
from k400tiny_lib.training.optimisation import make_average, make_optimizer, make_scheduler


@dataclass(frozen=True)
class Job:
    """What a worker is told by the step that launches it, as one JSON file.

    Attributes:
        config: the parameters of train, with local paths in place of URIs.
        run_id: the MLflow run of the step, noted in the checkpoints.
        journal: where rank 0 writes what happened.
        error: where a process writes a message for the user before it gives up.
        pack: the packed frames on this node; None to decode image files.
    """

    config: Config
    run_id: str
    journal: Path
    error: Path
    pack: Path | None = None

    def write(self, path: Path) -> None:
        """Write the job file."""
        job = {"run_id": self.run_id, "journal": str(self.journal), "error": str(self.error)}
        job["pack"] = str(self.pack or "")
        path.write_text(json.dumps(job | {"config": dataclasses.asdict(self.config)}))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read a job file."""
        job = json.loads(path.read_text())
        config = Config(**job["config"])
        pack = Path(job["pack"]) if job["pack"] else None
        return cls(config, job["run_id"], Path(job["journal"]), Path(job["error"]), pack)


def initial_model(config: Config, num_classes: int) -> nn.Module:
    """The model before the first update: from scratch, torchvision weights or a checkpoint.

    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    model = build_model(config.model, num_classes, config.dropout)
    if config.weights != NONE:
        state, _ = pretrained_state(config.weights, config.model)
        load_backbone(model, state, f"weights: {config.weights}")
    elif config.load_model != NONE:
        checkpoint = read_checkpoint(Path(config.load_model), "load_model")
        load_backbone(model, checkpoint["model"], f"load_model: {config.load_model}")
    return model


def training_clips(config: Config, annotations: Annotations, pack: Path | None) -> ClipDataset:
    """The augmented training clips, from a pack or from image files.

    Raises:
        UserError: if `no_flip_classes` names a class that the data does not have.
    """
    return ClipDataset(
        annotations.splits["train"],
        open_frames(pack, Path(config.data_path), config.resize_size),
        clip_len=config.clip_len,
        crop_size=config.crop_size,
        training=True,
        augmentation=config.augmentation,
        no_flip=no_flip_targets(config.no_flip_classes, annotations.categories),
        seed=config.seed,
    )


def make_trainer(
    config: Config, annotations: Annotations, process: Process, pack: Path | None = None
) -> Trainer:
    """Build everything that `loop.fit` needs.

    Raises:
        UserError: if there are too few clips for the processes and the batch size.
    """
    torch.manual_seed(config.seed)
    num_classes = (
        annotations.num_classes if config.num_classes == "auto" else int(config.num_classes)
    )
    model = fastest_form(initial_model(config, num_classes), process.device, config.channels_last)
    if config.sync_bn:
        if process.device.type == "cpu":
            raise UserError(
                "sync_bn: PyTorch's SyncBatchNorm does not run on a CPU. Needed: False."
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    forward: nn.Module = model
    if process.world_size > 1:
        devices = [process.device] if process.device.type == "cuda" else None
        forward = DistributedDataParallel(model, device_ids=devices)
    if config.compile:
        forward.compile()  # in place: the names of its weights stay
    # From here on each process draws its own dropout.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, process.rank]).generate_state(1)[0]))

    train_set = training_clips(config, annotations, pack)
    read = open_frames(pack, Path(config.data_path), config.resize_size)
    val_set = ClipDataset(
        annotations.splits["val"], read, clip_len=config.clip_len, crop_size=config.crop_size
    )
    workers = worker_count(config.num_workers, process.local_world_size)
    needed = config.batch_size * process.world_size
    if len(train_set) < needed or not len(val_set):
        raise UserError(
            f"batch_size: {config.batch_size} on {process.world_size} process(es) needs {needed} "
            f"training clips and one for validation; there are {len(train_set)} and {len(val_set)}."
        )
    sampler: DistributedSampler[Any] = DistributedSampler(
        train_set, process.world_size, process.rank, shuffle=True, seed=config.seed, drop_last=True
    )
    # Every clip once on any number of processes; DistributedSampler would repeat some to even out
    # the ranks (pytorch#25162).
    own_val = range(process.rank, len(val_set), process.world_size)
    train_loader = make_loader(
        train_set, sampler, batch_size=config.batch_size, num_workers=workers, drop_last=True
    )
    val_loader = make_loader(val_set, own_val, batch_size=config.batch_size, num_workers=workers)
    optimizer = make_optimizer(model, config)
    updates = -(-len(train_loader) // config.grad_accum_steps)
    return Trainer(
        config=config, process=process, model=model, forward=forward,
        average=make_average(model, config.ema_decay), optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, updates),
        train_loader=train_loader, val_loader=val_loader, num_classes=num_classes,
    )  # fmt: skip


class Reporter:
    """What happens after an epoch on rank 0: checkpoints, journal, one line of progress."""

    def __init__(self, job: Job, categories: dict[str, int]) -> None:
        self.config = config = job.config
        self.run_id = job.run_id
        self.categories = categories
        self.journal = Journal(job.journal)
        self.folder = Path(config.checkpoint_dir)
        self.epoch_start = time.perf_counter()

    def __call__(self, trainer: Trainer, metrics: dict[str, float], is_best: bool) -> None:
        if not trainer.process.is_main:
            return
        content = {
            "model": trainer.evaluated_model.state_dict(),
            "epoch": trainer.epoch,
            "config": dataclasses.asdict(self.config),
            "categories": self.categories,
            "run_id": self.run_id,
        }
        if is_best:
            write_atomically(content | {"val_acc1": metrics["val_acc1"]}, self.folder / BEST)
        if trainer.epoch % self.config.save_every == 0 or trainer.epoch == self.config.num_epochs:
            write_atomically(content | trainer.state(), self.folder / LAST)
        self.journal.log_metrics(metrics, step=trainer.epoch)
        seconds = time.perf_counter() - self.epoch_start
        self.epoch_start = time.perf_counter()
        left = seconds * (self.config.num_epochs - trainer.epoch)
        print(
            f"epoch {trainer.epoch:3d}/{self.config.num_epochs}"
            f"  train loss {metrics['train_loss']:.3f} acc1 {metrics['train_acc1']:5.1f}"
            f"  val loss {metrics['val_loss']:.3f} acc1 {metrics['val_acc1']:5.1f}"
            f"{'*' if is_best else ' '} {metrics['clips_per_second']:6.1f} clips/s"
            f"  waiting for data {metrics['data_time_fraction']:4.0%}  {left / 60:.1f} min left",
            flush=True,
        )


def checkpoint_to_resume(config: Config, process: Process) -> Path | None:
    """The checkpoint to continue: what `resume` says, and after a restart by torchrun the last."""
    last = Path(config.checkpoint_dir) / LAST
    if config.resume == "auto" or process.restarts:
        return last if last.exists() else None
    return None if config.resume == NONE else Path(config.resume)


def run(job: Job, process: Process) -> None:
    """Train as the job says, on this process."""
    config = job.config
    annotations = read_annotations(Path(config.annotations))
    trainer = make_trainer(config, annotations, process, job.pack)
    source = checkpoint_to_resume(config, process)
    if source is not None:
        checkpoint = read_checkpoint(source, "resume")
        if "optimizer" not in checkpoint:
            raise UserError(f"resume: {source} holds no training state. Needed: a last.pt.")
        trainer.load_state(checkpoint)
        if process.is_main:
            print(f"resuming {source} at epoch {trainer.epoch + 1}", flush=True)
    fit(trainer, Reporter(job, annotations.categories))


def main() -> None:
    """Entry point of each process; a user's mistake goes to the job's error file, exit code 2."""
    job = Job.read(Path(sys.argv[1]))
    try:
        with process_group() as process:
            run(job, process)
    except torch.OutOfMemoryError as error:
        job.error.write_text(
            f"batch_size: {job.config.batch_size} does not fit into the GPU's memory "
            f"({str(error).splitlines()[0]}). Needed: a smaller batch_size (and larger "
            "grad_accum_steps), clip_len or crop_size."
        )
        sys.exit(2)
    except UserError as error:
        job.error.write_text(str(error))
        sys.exit(2)


if __name__ == "__main__":
    main()
