"""The figure that both a training run and the evaluation report show."""

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Histories = Mapping[str, Sequence[tuple[int, float]]]  # (epoch, value) by name of the metric

_PANELS = {
    "loss": ("train_loss", "val_loss"),
    "top-1 accuracy (%)": ("train_acc1", "val_acc1"),
    "learning rate": ("lr",),
}
CURVE_METRICS = tuple(name for names in _PANELS.values() for name in names)


def plot_learning_curves(histories: Histories) -> Figure:
    """Loss, top-1 accuracy and learning rate over the epochs.

    Args:
        histories: at least one of CURVE_METRICS; a panel without values is left out.
    """
    panels = {
        title: drawn
        for title, names in _PANELS.items()
        if (drawn := [name for name in names if histories.get(name)])
    }
    figure = Figure(figsize=(4 * len(panels), 3.5), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, names) in zip(row, panels.items(), strict=True):
        for name in names:
            axes.plot(*zip(*histories[name], strict=True), marker=".", label=name)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure
