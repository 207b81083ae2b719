"""The learning curves of a run as one picture."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from k400tiny_lib.metrics_log import Entry


def plot_curves(entries: Sequence[Entry]) -> Figure:
    """Loss, top-1 accuracy and learning rate over the epochs, training beside validation."""
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    epochs = [entry.step for entry in entries]
    for axes, metric, unit in ((loss, "loss", ""), (accuracy, "acc1", " (%)")):
        for split in ("train", "val"):
            values = [entry.metrics[f"{split}_{metric}"] for entry in entries]
            axes.plot(epochs, values, marker=".", label=split)
        axes.set(title=f"{metric}{unit}", xlabel="epoch")
        axes.legend()
        axes.grid(alpha=0.3)
    rate.plot(epochs, [entry.metrics["lr"] for entry in entries], marker=".")
    rate.set(title="lr", xlabel="epoch")
    rate.grid(alpha=0.3)
    return figure
