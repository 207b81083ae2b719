"""One training process, as torchrun starts it: wires data, model and optimizer to the loop.

torchrun --nproc-per-node 2 -m k400tiny_lib.training.worker job.json
"""

import json
import os
import shutil
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import Annotations, read_annotations
from k400tiny_lib.data.loading.augmentation import no_flip_targets
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.frame_cache import open_frames
from k400tiny_lib.data.loading.loader import make_loader, worker_count
from k400tiny_lib.distributed.process import Process, TrainSampler, process_group
from k400tiny_lib.distributed.signals import EXIT_CODE, StopSignal
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.models.checkpoint import BEST, read_checkpoint
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.weights import build_model, load_weights, pretrained_state
from k400tiny_lib.training.loop import Interrupted, Trainer, fit
from k400tiny_lib.training.optim import make_average, make_optimizer, make_scheduler, scaled_lr_line
from k400tiny_lib.training.reporting import Reporter, continue_journal
from k400tiny_lib.training.resuming import check_resumable, checkpoint_to_continue
from k400tiny_lib.training.state import load_state


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
        path.write_text(json.dumps(job | {"config": self.config.to_dict()}))

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
        load_weights(model, state, f"weights: {config.weights}")
    elif config.load_model != NONE:
        checkpoint = read_checkpoint(Path(config.load_model), "load_model")
        load_weights(model, checkpoint["model"], f"load_model: {config.load_model}")
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
    model = to_fast_layout(initial_model(config, num_classes), process.device, config.channels_last)
    if config.sync_bn:
        if process.device.type == "cpu":
            raise UserError(
                "sync_bn: PyTorch's SyncBatchNorm does not run on a CPU. Needed: False."
            )
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    forward: nn.Module = model
    if process.world_size > 1:
        devices = [process.device] if process.device.type == "cuda" else None
        # A frozen backbone gets no gradients that DDP could wait for.
        forward = DistributedDataParallel(
            model, device_ids=devices, find_unused_parameters=config.freeze_epochs > 0
        )
    if config.compile:
        forward.compile()  # in place: the names of its weights stay
    # From here on each process draws its own dropout.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, process.rank]).generate_state(1)[0]))

    train_set = training_clips(config, annotations, pack)
    read = open_frames(pack, Path(config.data_path), config.resize_size)
    val_set = ClipDataset(
        annotations.splits["val"], read, clip_len=config.clip_len, crop_size=config.crop_size
    )
    workers = worker_count(config.num_workers, process.local_world_size, train_set)
    needed = config.batch_size * process.world_size
    if len(train_set) < needed or not len(val_set):
        raise UserError(
            f"batch_size: {config.batch_size} on {process.world_size} process(es) needs {needed} "
            f"training clips and one for validation; there are {len(train_set)} and {len(val_set)}."
        )
    sampler = TrainSampler(
        train_set, process.world_size, process.rank, shuffle=True, seed=config.seed, drop_last=True
    )
    # Every clip once on any number of processes; DistributedSampler would repeat some to even out
    # the ranks (pytorch#25162).
    own_val = range(process.rank, len(val_set), process.world_size)
    train_loader = make_loader(
        train_set, sampler, batch_size=config.batch_size, num_workers=workers, drop_last=True
    )
    val_loader = make_loader(val_set, own_val, batch_size=config.batch_size, num_workers=workers)
    optimizer = make_optimizer(model, config, process.world_size)
    if config.lr_batch_size and process.is_main:
        print(scaled_lr_line(config, process.world_size), flush=True)
    updates = -(-len(train_loader) // config.grad_accum_steps)
    return Trainer(
        config=config,
        process=process,
        model=model,
        forward=forward,
        average=make_average(model, config.ema_decay),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, updates),
        train_loader=train_loader,
        val_loader=val_loader,
        num_classes=num_classes,
    )


def resume(trainer: Trainer, job: Job, categories: dict[str, int]) -> None:
    """Continue a checkpoint, if there is one to continue; every process must call it.

    Raises:
        UserError: if it cannot be read or is of another training.
    """
    process, folder = trainer.process, Path(job.config.checkpoint_dir)
    checkpoint = checkpoint_to_continue(job.config, job.run_id, process)
    if checkpoint is None:
        return
    check_resumable(checkpoint, job.config, categories)
    load_state(trainer, checkpoint, "resume: the checkpoint")
    if process.is_main:
        continue_journal(job.journal, checkpoint["journal"])
        former = Path(job.config.resume).with_name(BEST)
        if job.config.resume != NONE and former.exists() and not (folder / BEST).exists():
            shutil.copyfile(former, folder / BEST)
        print(
            f"resuming run {checkpoint['run_id']} in epoch {trainer.epoch + 1}, after batch "
            f"{trainer.batch}" + f" (restart {process.restarts})" * bool(process.restarts),
            flush=True,
        )
    [has_best] = process.anywhere(process.is_main and (folder / BEST).exists())
    if not has_best:  # the best of what follows
        trainer.best_epoch, trainer.best_val_acc1 = 0, -1.0


def run(job: Job, process: Process) -> None:
    """Train as the job says, on this process.

    Raises:
        Interrupted: after a signal.
    """
    annotations = read_annotations(Path(job.config.annotations))
    trainer = make_trainer(job.config, annotations, process, job.pack)
    resume(trainer, job, annotations.categories)
    reporter = Reporter(job.config, job.run_id, job.journal, annotations.categories, process)
    with StopSignal() as trainer.stop:
        fit(trainer, reporter, reporter.after_update)


def main() -> None:
    """Entry point of each process."""
    code = work(Job.read(Path(sys.argv[1])))
    sys.stdout.flush()
    sys.stderr.flush()
    # Loader processes outlive signals, and Python would wait for one that is stuck. They end by
    # themselves when this process has gone.
    os._exit(code)


def work(job: Job) -> int:
    """Train as a process of torchrun; returns the exit code.

    A user's mistake goes to the job's error file, with code 2.
    """
    try:
        with process_group() as process:
            run(job, process)
    except Interrupted:
        return EXIT_CODE
    except UserError as error:
        job.error.write_text(str(error))
        return 2
    except Exception as error:
        if not out_of_memory(error):
            traceback.print_exc()
            return 1
        job.error.write_text(
            f"batch_size: {job.config.batch_size} does not fit into memory ({one_line(error)}). "
            "Needed: a smaller batch_size (and larger grad_accum_steps), clip_len or crop_size, "
            "or fewer num_workers."
        )
        return 2
    return 0


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory is full, of a GPU or of the machine."""
    # PyTorch has an exception of its own for GPUs only.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in ("DefaultCPUAllocator", "MemoryError", "Cannot allocate")
    )


if __name__ == "__main__":
    main()
