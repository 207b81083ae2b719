"""Figures of a study: all its trials, and which parameters matter."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from k400tiny_lib.config.declaration import Range
from k400tiny_lib.plots import LabeledFigure

_COLORS = colormaps["viridis"]


def plot_trials(trials: Sequence[FrozenTrial], ranges: Mapping[str, Range]) -> Figure:
    """Parallel coordinates: a line for each trial through its values, colored by val_acc1.

    Trials that were stopped early are thin and gray.
    """
    figure = LabeledFigure(figsize=(2 + 1.8 * len(ranges), 4), layout="constrained")
    axes = figure.subplots()
    scores = [t.user_attrs["val_acc1"] for t in trials if t.state == TrialState.COMPLETE]
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    norm = Normalize(low, high if high > low else low + 1)
    # The best are drawn last.
    for trial in sorted(trials, key=lambda t: t.user_attrs.get("val_acc1", 0.0)):
        heights = [_height(trial.params[name], tried) for name, tried in ranges.items()]
        is_complete = trial.state == TrialState.COMPLETE
        score = trial.user_attrs.get("val_acc1", 0.0)
        heights.append(min(max(float(norm(score)), 0.0), 1.0))
        axes.plot(
            range(len(heights)),
            heights,
            color=_COLORS(norm(score)) if is_complete else "lightgray",
            linewidth=1.8 if is_complete else 0.8,
            zorder=2 if is_complete else 1,
        )
    for position, (name, tried) in enumerate(ranges.items()):
        _draw_axis(axes, position, name, _ticks(tried))
    end = {float(norm(value)): f"{value:.1f} %" for value in _norm_ticks(norm)}
    _draw_axis(axes, len(ranges), "val top-1", end)
    axes.set(xlim=(-0.3, len(ranges) + 0.3), ylim=(-0.06, 1.06))
    axes.set_axis_off()
    figure.colorbar(ScalarMappable(norm, _COLORS), ax=axes, label="val top-1 (%)")
    return figure


def plot_importances(study: optuna.Study) -> Figure | None:
    """How much of the variance of the score each parameter explains; None if it says nothing.

    That is so with fewer than two trials that were trained to their end, or equal ones.
    """
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in complete}) < 2:
        return None
    try:
        importances = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
    except (ValueError, RuntimeError):  # where all of them have the same values
        return None
    figure = LabeledFigure(figsize=(6, 1.2 + 0.4 * len(importances)), layout="constrained")
    axes = figure.subplots()
    names = list(importances)[::-1]
    bars = axes.barh(names, [importances[name] for name in names])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set(xlim=(0, 1.1), xlabel="share of the variance of val top-1 that it explains (fANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _height(value: Any, tried: Range) -> float:
    """Where a value is on its axis, in [0, 1]."""
    if tried.choices:
        return tried.choices.index(value) / max(len(tried.choices) - 1, 1)
    low, high = float(tried.low), float(tried.high)
    if tried.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return float((value - low) / (high - low))


def _ticks(tried: Range) -> dict[float, str]:
    """Labels of an axis by their height."""
    if tried.choices:
        return {_height(choice, tried): choice for choice in tried.choices}
    if tried.log:
        first, last = math.ceil(math.log10(tried.low)), math.floor(math.log10(tried.high))
        values = [10.0**power for power in range(first, last + 1)]
    elif tried.whole:
        values = [float(value) for value in range(int(tried.low), int(tried.high) + 1)]
    else:
        values = [tried.low + (tried.high - tried.low) * part / 4 for part in range(5)]
    return {_height(value, tried): f"{value:g}" for value in values}


def _norm_ticks(norm: Normalize) -> list[float]:
    """Five values between the ends of a norm."""
    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    return [low + (high - low) * part / 4 for part in range(5)]


def _draw_axis(axes: Axes, position: int, name: str, ticks: Mapping[float, str]) -> None:
    axes.plot([position, position], [0, 1], color="black", linewidth=1, zorder=3)
    axes.text(position, 1.04, name, ha="center", va="bottom", weight="bold")
    for height, label in ticks.items():
        axes.plot([position - 0.02, position], [height, height], color="black", zorder=3)
        axes.text(
            position - 0.04,
            height,
            label,
            ha="right",
            va="center",
            size=8,
            zorder=4,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
        )
