"""What an epoch looks like on the console."""

from collections.abc import Mapping

import psutil
import torch


def memory_gb(device: torch.device) -> float:
    """Memory in 10^9 bytes: the largest use of a GPU so far, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return float(psutil.Process().memory_info().rss / 1e9)


def progress_line(
    epoch: int, num_epochs: int, metrics: Mapping[str, float], is_best: bool, seconds: float
) -> str:
    """One line for an epoch, with the time left if the others take as long.

    Args:
        epoch: its number, from 1.
        num_epochs: of the run.
        metrics: of the epoch, those of `loop.train_epoch` and `loop.validate` and memory_gb.
        is_best: whether it is the best so far, marked by a star.
        seconds: that it took.
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


def duration(seconds: float) -> str:
    """A time span for people: "45 s", "12 min", "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
