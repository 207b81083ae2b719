"""One training process, started by torchrun: builds the state of training and runs the loop on it.

torchrun --nproc-per-node 2 -m k400tiny_lib.training.worker job.json
"""

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from k400tiny_lib.config import AUTO, Config
from k400tiny_lib.config.value_types import HEAD
from k400tiny_lib.data.annotations import Annotations, read_annotations
from k400tiny_lib.data.loading.augmentation import no_flip_targets
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.feature_cache import with_features
from k400tiny_lib.data.loading.frame_cache import open_frames
from k400tiny_lib.data.loading.loader import make_loader, shared_memory_problem, worker_count
from k400tiny_lib.distributed.launch import Job
from k400tiny_lib.distributed.problems import compile_problem, out_of_memory
from k400tiny_lib.distributed.process import (
    EXIT_CODE,
    Process,
    TrainSampler,
    process_group,
    stop_signal,
)
from k400tiny_lib.distributed.torchrun import join_torchrun
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.frozen import FrozenModel, backbone_digest, freeze, head_input
from k400tiny_lib.models.initial import initial_model
from k400tiny_lib.models.modules import share_batch_statistics
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.training.loop import Interrupted, fit
from k400tiny_lib.training.optim import make_average, make_optimizer, make_scheduler, scaled_lr_line
from k400tiny_lib.training.reporting import Reporter
from k400tiny_lib.training.resuming import resume
from k400tiny_lib.training.state import Loader, TrainState, updates_per_epoch

BuildModel = Callable[[Config, int], nn.Module]


@dataclass(frozen=True)
class TrainingJob(Job):
    """The job of training.

    Attributes:
        run_id: the MLflow run of the step, stored in the checkpoints.
        frame_cache: directory of the frame cache on this node; None to decode image files.
        resumed_run: the run whose checkpoint is resumed; None without one.
        frames_digest: from `resolve_features`; None to keep no features.
    """

    run_id: str
    frame_cache: Path | None = None
    resumed_run: str | None = None
    frames_digest: str | None = None

    @property
    def metrics_log(self) -> Path:
        """Where rank 0 logs metrics; `folder` holds the attachments."""
        return Path(f"{self.folder}.jsonl")


def training_clips(
    config: Config, annotations: Annotations, frame_cache: Path | None
) -> ClipDataset:
    """The augmented training clips, from the frame cache or from image files.

    Raises:
        UserError: if `no_flip_classes` names a class that the data does not have.
    """
    return ClipDataset(
        annotations.splits["train"],
        open_frames(frame_cache, Path(config.data_path), config.resize_size),
        clip_len=config.clip_len,
        crop_size=config.crop_size,
        training=True,
        augmentation=config.augmentation,
        no_flip=no_flip_targets(config.no_flip_classes, annotations.categories),
        seed=config.seed,
        views=config.feature_views if config.train_layers == HEAD else 0,
    )


def make_model(
    config: Config, num_classes: int, process: Process, build: BuildModel
) -> tuple[nn.Module, nn.Module]:
    """The plain model, and the same as training calls it: wrapped in DDP, maybe compiled.

    Raises:
        UserError: if the weights do not fit, or for sync_bn on a CPU.
    """
    model = to_fast_layout(build(config, num_classes), process.device, config.channels_last)
    if config.sync_bn:
        if process.device.type == "cpu":
            raise UserError("sync_bn: SyncBatchNorm does not run on a CPU. Needed: False.")
        model = share_batch_statistics(model)
    freeze(model, config.train_layers)
    forward: nn.Module = FrozenModel(model) if config.train_layers == HEAD else model
    if process.world_size > 1:
        devices = [process.device] if process.device.type == "cuda" else None
        # A frozen backbone gets no gradients that DDP could wait for.
        forward = DistributedDataParallel(
            forward, device_ids=devices, find_unused_parameters=config.freeze_epochs > 0
        )
    if config.compile:
        forward.compile()  # in place: the names of its weights stay
    return model, forward


def make_loaders(
    config: Config, annotations: Annotations, process: Process, frame_cache: Path | None
) -> tuple[Loader, Loader]:
    """The loaders of this process's share of the training and of the validation clips.

    Raises:
        UserError: if there are too few clips for the processes and the batch size.
    """
    train_set = training_clips(config, annotations, frame_cache)
    read = open_frames(frame_cache, Path(config.data_path), config.resize_size)
    val_set = ClipDataset(
        annotations.splits["val"], read, clip_len=config.clip_len, crop_size=config.crop_size
    )
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
    val_share = range(process.rank, len(val_set), process.world_size)
    workers = worker_count(config.num_workers, process.local_world_size, train_set)
    make = partial(make_loader, batch_size=config.batch_size, num_workers=workers)
    return make(train_set, sampler, drop_last=True), make(val_set, val_share)


def make_train_state(
    config: Config,
    annotations: Annotations,
    process: Process,
    frame_cache: Path | None = None,
    build: BuildModel | None = None,
) -> TrainState:
    """Build everything that `loop.fit` needs, for training from the beginning.

    Args:
        frame_cache: directory of the frame cache; None to decode image files.
        build: (config, number of classes) -> the model before the first update; None for
            `initial_model`.

    Raises:
        UserError: as for `make_model` and `make_loaders`.
    """
    num_classes = annotations.num_classes if config.num_classes == AUTO else int(config.num_classes)
    torch.manual_seed(config.seed)
    build = build or partial(initial_model, categories=annotations.categories)
    model, forward = make_model(config, num_classes, process, build)
    # From here on each process draws different dropout.
    torch.manual_seed(int(np.random.SeedSequence([config.seed, process.rank]).generate_state(1)[0]))
    train_loader, val_loader = make_loaders(config, annotations, process, frame_cache)
    optimizer = make_optimizer(model, config, process.world_size)
    if config.lr_batch_size and process.is_main:
        print(scaled_lr_line(config, process.world_size), flush=True)
    per_epoch = updates_per_epoch(len(train_loader), config.grad_accum_steps)
    return TrainState(
        config=config,
        process=process,
        model=model,
        forward=forward,
        average=make_average(model, config.ema_decay),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, config, per_epoch),
        train_loader=train_loader,
        val_loader=val_loader,
        num_classes=num_classes,
    )


def keep_features(state: TrainState, annotations: Annotations, frames_digest: str) -> None:
    """Let a state train on features of its frozen backbone; every process must call it.

    Those that the feature cache lacks are computed first.

    Args:
        state: as it is to be trained on: a checkpoint has been loaded.
        annotations: its clips.
        frames_digest: from `resolve_features`.

    Raises:
        UserError: as for `with_features`.
    """
    config, process = state.config, state.process
    model = state.model.eval()
    precision = f"{state.amp_dtype} {process.device.type} {config.channels_last}"

    @torch.inference_mode()
    def compute(clips: Tensor) -> Tensor:
        with state.autocast():
            return head_input(model, model_input(model, clips.to(process.device)))

    keep = partial(
        with_features,
        config=config,
        key=(frames_digest, backbone_digest(model), precision),
        compute=compute,
        team=process,
    )
    views = min(config.feature_views, config.num_epochs)
    state.train_loader = keep(state.train_loader, annotations.splits["train"], views)
    state.val_loader = keep(state.val_loader, annotations.splits["val"], 1)


def run(job: TrainingJob, process: Process, build: BuildModel | None = None) -> None:
    """Train as the job says, on this process.

    Raises:
        Interrupted: after a signal.
    """
    annotations = read_annotations(Path(job.config.annotations))
    state = make_train_state(job.config, annotations, process, job.frame_cache, build)
    resume(state, job.run_id, job.metrics_log, annotations.categories)
    if job.frames_digest and not state.finished:
        keep_features(state, annotations, job.frames_digest)
    reporter = Reporter(state, job.run_id, job.metrics_log, annotations.categories)
    state.save_due = reporter.save_due
    with stop_signal() as state.stop:
        try:
            fit(state, reporter.on_epoch, reporter.save)
        except Interrupted:
            if process.is_main:
                print(
                    f"stopped by a signal in epoch {state.epoch + 1}, after batch "
                    f"{state.batch}/{len(state.train_loader)}; -P resume=auto "
                    f"-P checkpoint_dir={job.config.checkpoint_dir} continues there",
                    flush=True,
                )
            raise


def main(build: BuildModel | None = None) -> None:
    """Entry point of each process."""
    join_torchrun()
    code = work(TrainingJob.read(Path(sys.argv[1])), build)
    sys.stdout.flush()
    sys.stderr.flush()
    # Loader processes ignore signals, and Python would wait for one that is stuck. They end when
    # this process has gone.
    os._exit(code)


def work(job: TrainingJob, build: BuildModel | None = None) -> int:
    """Train as a process of torchrun; returns the exit code.

    A user's mistake goes to the job's error file, with code 2.
    """
    try:
        with process_group() as process:
            run(job, process, build)
    except Interrupted:
        return EXIT_CODE
    except UserError as error:
        job.error.write_text(str(error))
        return 2
    except Exception as error:
        if problem := shared_memory_problem(error):
            job.error.write_text(problem)
            return 2
        if not out_of_memory(error):
            traceback.print_exc()
            if not (problem := compile_problem(error)):
                return 1
            job.error.write_text(problem)
            return 2
        job.error.write_text(
            f"batch_size: {job.config.batch_size} does not fit into memory ({one_line(error)}). "
            "Needed: a smaller batch_size (and larger grad_accum_steps), clip_len or crop_size, "
            "or fewer num_workers."
        )
        return 2
    return 0


if __name__ == "__main__":
    main()
