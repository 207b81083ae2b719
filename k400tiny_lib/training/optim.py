"""Optimizer, learning rate schedule, mixed precision and weight averaging, from torch.optim."""

import math

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.conv2d import has_conv3d, has_depthwise_conv2d
from k400tiny_lib.system import has_bf16_matmul

# Of torchvision's video recipe: 45 epochs, the rate divided by ten at 20, 30 and 40.
_STEP_MILESTONES = (20 / 45, 30 / 45, 40 / 45)
_EXPONENTIAL_END = 0.01  # share of the peak at the end


def peak_lr(config: Config, world_size: int) -> float:
    """The highest learning rate of a run, for its effective batch size.

    By the linear scaling rule (Goyal et al. 2017, arXiv:1706.02677): k times the clips, k times
    the rate. A recipe that states its rate for `lr_batch_size` clips then fits any number of GPUs.
    """
    if not config.lr_batch_size:
        return config.lr
    return config.lr * effective_batch_size(config, world_size) / config.lr_batch_size


def effective_batch_size(config: Config, world_size: int) -> int:
    """Number of clips in one update, over all processes."""
    return config.batch_size * world_size * config.grad_accum_steps


def scaled_lr_line(config: Config, world_size: int) -> str:
    """How the stated learning rate was scaled, for the console."""
    actual, clips = peak_lr(config, world_size), effective_batch_size(config, world_size)
    stated = f"{config.lr:g} for {config.lr_batch_size} clips per update"
    return f"learning rate: {stated}, {actual:g} for the {clips} of this run"


def make_optimizer(model: nn.Module, config: Config, world_size: int = 1) -> Optimizer:
    """SGD (Nesterov where there is momentum) or AdamW; biases and norms without weight decay."""
    lr = peak_lr(config, world_size)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=lr)
    return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)


def lr_factor(position: float, config: Config, updates_per_epoch: int) -> float:
    """Learning rate at a position in training, as a share of its peak.

    Linear warm-up, then the schedule over the remaining epochs. The position is in epochs because a
    resumed run may have another number of updates per epoch.

    Args:
        position: number of finished epochs, plus the finished share of the current one.
        config: scheduler, num_epochs and warmup_epochs.
        updates_per_epoch: the warm-up is a whole number of updates, its first rate above 0.
    """
    updates = config.num_epochs * updates_per_epoch
    warmup_updates = min(round(config.warmup_epochs * updates_per_epoch), updates - 1)
    warmup = warmup_updates / updates_per_epoch
    if position < warmup:
        return (position * updates_per_epoch + 1) / (warmup_updates + 1)
    progress = (position - warmup) / (config.num_epochs - warmup)  # 0 at the peak, 1 at the end
    if config.scheduler == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    if config.scheduler == "step":
        milestones = [round(share * updates) / updates_per_epoch for share in _STEP_MILESTONES]
        return float(0.1 ** sum(position >= milestone for milestone in milestones))
    if config.scheduler == "exponential":
        return float(_EXPONENTIAL_END**progress)
    return 1.0


def make_scheduler(
    optimizer: Optimizer, config: Config, updates_per_epoch: int, start: int = 0
) -> LambdaLR:
    """`lr_factor` with one step per update, from update number `start` on.

    The rates of the optimizer are the peak, or those of a scheduler that this one replaces.
    """
    return LambdaLR(
        optimizer,
        lambda update: lr_factor(update / updates_per_epoch, config, updates_per_epoch),
        last_epoch=start - 1,
    )


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and BatchNorm statistics; None for decay 0."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def amp_dtype(amp: str, model: nn.Module, device: torch.device) -> torch.dtype | None:
    """The autocast type of the parameter `amp` on a device; None for full precision.

    `auto` is bf16 where that is right and faster (benchmarks/training_step.py): on GPUs and CPUs
    that multiply bf16, on a CPU without 3D or depthwise convolutions in the model. On a CPU that
    does not, autocast is slower than float32 by an order of magnitude.

    Raises:
        UserError: for bf16 on a CPU if the model has 3D convolutions.
    """
    is_wrong = device.type == "cpu" and has_conv3d(model)
    if amp == "bf16" and is_wrong:
        raise UserError(
            "amp: bf16 gives wrong gradients in 3D convolutions on a CPU, and this model has "
            "some. Needed: amp=off, or channels_last=True with r2plus1d_18, slow_r50 or s3d, whose "
            "convolutions all become 2D."
        )
    if amp == "auto":
        is_slow = device.type == "cpu" and has_depthwise_conv2d(model)
        return torch.bfloat16 if has_bf16_matmul(device) and not is_wrong | is_slow else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
