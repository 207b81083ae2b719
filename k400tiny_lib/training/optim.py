"""Optimizer, learning rate schedule, mixed precision and averaging, from torch.optim."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from k400tiny_lib.config import Config
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.system import has_bf16_matmul

# Of torchvision's video recipe: 45 epochs, the rate divided by ten at 20, 30 and 40.
_STEP_MILESTONES = (20 / 45, 30 / 45, 40 / 45)
_EXPONENTIAL_END = 0.01  # share of the peak at the end


def peak_lr(config: Config, world_size: int) -> float:
    """The learning rate for the actual number of clips per update.

    By the linear scaling rule (Goyal et al. 2017, arXiv:1706.02677): k times the clips, k times
    the rate. Stated for its number of clips, a recipe then fits any number of GPUs.

    Args:
        config: lr, the clips that it is stated for, and what makes up an update.
        world_size: processes on all nodes.
    """
    if not config.lr_batch_size:
        return config.lr
    return config.lr * clips_per_update(config, world_size) / config.lr_batch_size


def clips_per_update(config: Config, world_size: int) -> int:
    """Clips whose gradients make one update, over all processes."""
    return config.batch_size * world_size * config.grad_accum_steps


def scaled_lr_line(config: Config, world_size: int) -> str:
    """What became of the stated learning rate, for the console."""
    actual, clips = peak_lr(config, world_size), clips_per_update(config, world_size)
    stated = f"{config.lr:g} for {config.lr_batch_size} clips per update"
    return f"learning rate: {stated}, {actual:g} for the {clips} of this run"


def make_optimizer(model: nn.Module, config: Config, world_size: int = 1) -> Optimizer:
    """SGD (Nesterov where there is momentum) or AdamW; biases and norms without weight decay."""
    lr = peak_lr(config, world_size)
    decayed = [p for p in _trainable(model) if p.ndim > 1]
    others = [p for p in _trainable(model) if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "adamw":
        return AdamW(groups, lr=lr)
    return SGD(groups, lr=lr, momentum=config.momentum, nesterov=config.momentum > 0)


def _trainable(model: nn.Module) -> Iterator[nn.Parameter]:
    return (p for p in model.parameters() if p.requires_grad)


def make_scheduler(
    optimizer: Optimizer, config: Config, updates_per_epoch: int
) -> lr_scheduler.LRScheduler:
    """Linear warm-up, then the named schedule over the remaining updates; one step per update."""
    total = config.num_epochs * updates_per_epoch
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total - 1)
    rest = max(total - warmup, 1)
    main: lr_scheduler.LRScheduler
    if config.scheduler == "cosine":
        main = lr_scheduler.CosineAnnealingLR(optimizer, T_max=rest)
    elif config.scheduler == "step":
        milestones = [round(share * total) - warmup for share in _STEP_MILESTONES]
        main = lr_scheduler.MultiStepLR(optimizer, [max(m, 1) for m in milestones], gamma=0.1)
    elif config.scheduler == "exponential":
        main = lr_scheduler.ExponentialLR(optimizer, gamma=_EXPONENTIAL_END ** (1 / rest))
    else:
        main = lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=0)
    if warmup < 1:
        return main
    linear = lr_scheduler.LinearLR(optimizer, start_factor=1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [linear, main], milestones=[warmup])


def make_average(model: nn.Module, decay: float) -> AveragedModel | None:
    """An exponential moving average of weights and BatchNorm statistics; None for decay 0."""
    if not decay:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def amp_dtype(amp: str, model: str, device: torch.device) -> torch.dtype | None:
    """The autocast type of a setting for an architecture on a device; None for full precision.

    `auto` is bf16 where that is faster (benchmarks/training_step.py): on GPUs, and for most
    architectures on a CPU, that have matrix instructions for it. On a CPU without them, autocast is
    slower than float32 by an order of magnitude.
    """
    if amp == "auto":
        gains = device.type == "cuda" or ARCHITECTURES[model].gains_from_bf16_on_cpu
        return torch.bfloat16 if gains and has_bf16_matmul(device) else None
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]
