"""The training loop, to be read from top to bottom.

`worker` builds the state that it changes, and `reporting` saves and reports it. By hand:

    mlflow run . -e train --env-manager local -P annotations=annotations.json -P data_path=frames
    torchrun --nproc-per-node 2 -m k400tiny_lib.training.worker job.json
"""

import contextlib
import math
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from k400tiny_lib.config.value_types import HEAD
from k400tiny_lib.data.loading.augmentation import AUGMENTATIONS, seeded
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.feature_cache import CachedFeatures
from k400tiny_lib.data.loading.loader import batches
from k400tiny_lib.distributed.process import TrainSampler, average_tensors
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.frozen import freeze, learning_buffers, learning_state
from k400tiny_lib.models.weights import not_finite
from k400tiny_lib.training.meters import Meters
from k400tiny_lib.training.state import TrainState

Save = Callable[[TrainState], None]


class Interrupted(Exception):
    """A signal has ended training; the state is saved."""


def fit(
    state: TrainState,
    on_epoch: Callable[[TrainState, dict[str, float], bool], None],
    save: Save = lambda state: None,
) -> None:
    """Train until num_epochs or out of patience, validating after each epoch.

    Args:
        state: training starts at its epoch and the batch within.
        on_epoch: called on every process after each epoch with the state, the metrics of the epoch
            and whether it is the best so far; it saves and reports.
        save: called on every process, within an epoch, where one of them has a save due or was
            asked by a signal to stop.

    Raises:
        Interrupted: on every process after a signal to one of them, once the state is saved.
        UserError: as for `train_epoch`, and on every process if the weights or the validation loss
            are not finite: such a state is neither saved nor reported.
    """
    while not state.finished:
        metrics = train_epoch(state, save)
        metrics |= validate(state)
        broken = _not_finite(state, metrics["val_loss"])
        bad, due, stop = state.process.any_rank(bool(broken), state.save_due(), state.stop())
        if bad:  # before it is saved
            raise UserError(_describe_broken(state, broken))
        _save_if(state, save, due, stop)  # a signal cuts the validation short
        is_best = state.end_epoch(metrics["val_acc1"])
        on_epoch(state, metrics, is_best)


def train_epoch(state: TrainState, save: Save) -> dict[str, float]:
    """One pass over the training clips in a new order, or the rest of an interrupted one.

    Returns:
        train_loss, train_acc1, train_acc5 (percent; over the clips as the updates saw them, a mixed
        clip counting for the heavier of its labels), lr of the last update, clips_per_second of all
        processes, data_time_fraction in [0, 1].

    Raises:
        Interrupted: as for `fit`.
        UserError: if the loss, or the weights that are to be saved, are not finite on one process;
            on every process.
    """
    config, device = state.config, state.process.device
    sampler, dataset = state.train_loader.sampler, state.train_loader.dataset
    assert isinstance(sampler, TrainSampler)
    assert isinstance(dataset, ClipDataset | CachedFeatures)
    sampler.begin(state.epoch, state.batch * config.batch_size)
    dataset.epoch = state.epoch
    mix = AUGMENTATIONS[config.augmentation].per_batch
    print_interval = config.print_interval if state.process.is_main else 0
    loader, num_batches = batches(state.train_loader), len(state.train_loader)
    steps = config.grad_accum_steps
    state.forward.train()
    # At first the gradients of a new head are noise that would spoil pretrained features.
    layers = HEAD if state.epoch < config.freeze_epochs else config.train_layers
    if config.train_layers != HEAD:
        freeze(state.model, layers)

    while state.batch < num_batches:
        start = data_start = time.perf_counter()
        losses: list[tuple[int, Tensor, Tensor]] = []  # batch, loss, positions of its clips
        # The last update of an epoch may have fewer batches; they weigh the same within it.
        num_parts = min(steps - state.batch % steps, num_batches - state.batch)
        last = state.batch + num_parts
        parts = enumerate(islice(loader, num_parts), start=state.batch + 1)
        for number, (clips, targets, positions) in parts:
            state.waiting += time.perf_counter() - data_start
            clips = clips.to(device, non_blocking=True)
            targets = targets.to(device, non_blocking=True)
            inputs, labels = state.input_of(clips), targets
            if mix is not None:
                with seeded(config.seed, state.epoch, number, state.process.rank):
                    inputs, labels = mix(inputs, targets, state.num_classes)
                targets = labels.argmax(1)
            with _sync_gradients(state.forward, number == last):
                with state.autocast():
                    logits = state.forward(inputs)
                    loss = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
                state.scaler.scale(loss / num_parts).backward()
            losses.append((number, loss.detach(), positions))
            state.meters.update(loss, logits, targets)
            if print_interval and number % print_interval == 0:
                print(f"  epoch {state.epoch + 1} batch {number}/{num_batches} loss {loss:.4f}")
            data_start = time.perf_counter()

        # One collective, and one wait for a GPU, per update. No process may stop alone: the others
        # would wait for its gradients.
        finite = torch.stack([loss for _, loss, _ in losses]).isfinite().all()
        bad, due, stop = state.process.any_rank(~finite, state.save_due(), state.stop())
        if bad:  # before it is in the weights
            raise UserError(_describe_bad(state, dataset, losses))
        _update(state)
        state.batch = last
        if state.batch == num_batches:
            for model in filter(None, (state.model, state.average and state.average.module)):
                average_tensors(learning_buffers(model, layers))
        state.seconds += time.perf_counter() - start
        if due or stop:
            broken = _not_finite(state)
            [bad] = state.process.any_rank(bool(broken))
            if bad:
                raise UserError(_describe_broken(state, broken))
        _save_if(state, save, due, stop)

    num_clips = num_batches * config.batch_size * state.process.world_size
    return state.meters.compute("train") | {
        "lr": state.lr,
        "clips_per_second": num_clips / state.seconds,
        "data_time_fraction": state.waiting / state.seconds,
    }


def _sync_gradients(model: nn.Module, sync: bool) -> contextlib.AbstractContextManager[Any]:
    """Let DDP exchange gradients at the last batch of an update only."""
    if isinstance(model, DistributedDataParallel) and not sync:
        return model.no_sync()
    return contextlib.nullcontext()


def _describe_bad(
    state: TrainState,
    dataset: ClipDataset | CachedFeatures,
    losses: list[tuple[int, Tensor, Tensor]],
) -> str:
    """The message of the first process with a loss that is not finite; every process calls it."""
    messages = [
        f"lr: the loss is {loss.item()} in epoch {state.epoch + 1}, batch {number}, of the clips "
        f"{', '.join(dataset.clips[i].video for i in positions.tolist())}. Needed: a smaller lr "
        f"than {state.config.lr:g}, clip_grad_norm, or these clips repaired. The last good "
        "checkpoint is kept."
        for number, loss, positions in losses
        if not loss.isfinite()
    ]
    return next(message for of_rank in state.process.gather(messages) for message in of_rank)


def _update(state: TrainState) -> None:
    state.lr = state.optimizer.param_groups[0]["lr"]
    state.scaler.unscale_(state.optimizer)
    if state.config.clip_grad_norm:
        nn.utils.clip_grad_norm_(state.model.parameters(), state.config.clip_grad_norm)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.scheduler.step()
    state.updates += 1
    if state.average is not None:
        state.average.update_parameters(state.model)


def _save_if(state: TrainState, save: Save, due: bool, stop: bool) -> None:
    if due or stop:
        save(state)
    if stop:
        raise Interrupted


def _not_finite(state: TrainState, val_loss: float = 0.0) -> str:
    """What is not finite on this process: weights, statistics or val_loss; "" for nothing."""
    layers = state.config.train_layers
    tensors = learning_state(state.model, layers)
    if state.average is not None:
        average = learning_state(state.average.module, layers)
        tensors |= {f"average of {k}": v for k, v in average.items()}
    if names := not_finite(tensors):
        return f"{names[0]} is not finite"
    return "" if math.isfinite(val_loss) else f"val_loss is {val_loss}"


def _describe_broken(state: TrainState, broken: str) -> str:
    """The message of the first process with a state that is not finite; every process calls it."""
    reason = next(filter(None, state.process.gather(broken)))
    within = f", batch {state.batch}" if state.batch < len(state.train_loader) else ""
    return (
        f"lr: {reason} after epoch {state.epoch + 1}{within}. Needed: a smaller lr than "
        f"{state.config.lr:g}, or clip_grad_norm. The checkpoints before it are kept."
    )


@torch.inference_mode()
def validate(state: TrainState) -> dict[str, float]:
    """Score the validation clips, each exactly once on any number of processes.

    A signal cuts it short.

    Returns:
        val_loss (plain cross entropy), val_acc1, val_acc5 (percent).
    """
    device = state.process.device
    meters = Meters(state.num_classes, device)
    # Not the wrapped model: the processes may have different numbers of batches.
    forward = state.evaluated_forward()
    for clips, targets, _ in batches(state.val_loader):
        clips, targets = clips.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        with state.autocast():
            logits = forward(state.input_of(clips))
        meters.update(F.cross_entropy(logits.float(), targets), logits, targets)
        if state.stop():
            break
    return meters.compute("val")
