"""Figures of a data set: clips per class and split, and some of the clips."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure

from k400tiny_lib.data.annotations import SPLITS, Annotations
from k400tiny_lib.data.loading.augmentation import seeded
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.plots import LabeledFigure, room_for, short_text

_MAX_BARS = 60
_SHEET_FRAMES = 8
_MAX_ROWS = 12
_AUGMENTED_CLIPS = 6
_TITLE_COLUMNS = 100


def plot_class_counts(table: pd.DataFrame) -> Figure:
    """Clips per class as stacked bars, one color per split; at most the 60 largest classes."""
    counts = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    counts = counts.loc[counts.sum(axis=1).sort_values().index[-_MAX_BARS:]]
    figure = LabeledFigure(figsize=(8, 1.2 + 0.28 * len(counts)), layout="constrained")
    axes = figure.subplots()
    starts = counts.cumsum(axis=1) - counts
    rows = range(len(counts))
    for split in SPLITS:
        label = f"{split} ({counts[split].sum()})"
        axes.barh(rows, counts[split], left=starts[split], label=label)
    axes.set_yticks(rows, map(short_text, counts.index))
    axes.set(xlabel="clips")
    axes.legend(loc="lower right")
    return figure


def plot_split_balance(table: pd.DataFrame) -> Figure:
    """The share of each class that is in val and test; lines mark the shares of all clips."""
    shares = pd.crosstab(table["label"], table["split"], normalize="index") * 100
    shares = shares.reindex(columns=SPLITS, fill_value=0.0).sort_values("test")
    names = [short_text(label) for label in shares.index] if len(shares) <= _MAX_BARS else []
    figure = LabeledFigure(figsize=(8, 3.5 + room_for(names)), layout="constrained")
    axes = figure.subplots()
    for split in SPLITS[1:]:
        (dots,) = axes.plot(range(len(shares)), shares[split], ".", label=split)
        overall = float((table["split"] == split).mean()) * 100
        axes.axhline(overall, color=dots.get_color(), linewidth=0.8, linestyle="--")
    if names:
        axes.set_xticks(range(len(shares)), names, rotation=90)
    axes.set(ylabel="% of the class's clips", xlabel=f"{len(shares)} classes", ylim=(0, None))
    axes.legend()
    return figure


def plot_contact_sheet(table: pd.DataFrame, clips_path: Path) -> Figure:
    """One clip per class, for at most 12 classes, as a row of frames in order of time."""
    first_clips = table.groupby("label", sort=True).head(1).sort_values("label")[:_MAX_ROWS]
    clips = []
    for row in first_clips.itertuples():
        indices = uniform_indices(row.num_frames, _SHEET_FRAMES).tolist()
        clips.append(read_frames(clips_path / row.folder_name, indices))
    return _plot_rows(first_clips["label"], clips)


def plot_augmented_clips(dataset: ClipDataset, annotations: Annotations) -> Figure:
    """Six training clips, evenly spread, after augmentation, mixed where the recipe mixes batches.

    Raises:
        UserError: if a clip cannot be read.
    """
    count = min(_AUGMENTED_CLIPS, len(dataset))
    shown = [dataset[position * len(dataset) // count] for position in range(count)]
    clips = torch.stack([clip for clip, _, _ in shown]) / 255  # (N, C, T, H, W)
    targets = torch.tensor([target for _, target, _ in shown])
    mix = dataset.augmentation.per_batch
    if mix is not None and count > 1:
        with seeded(dataset.seed):
            clips, soft = mix(clips, targets, annotations.num_classes)
    else:
        soft = torch.nn.functional.one_hot(targets, annotations.num_classes).float()
    columns = uniform_indices(clips.shape[2], min(_SHEET_FRAMES, clips.shape[2]))
    frames = clips[:, :, columns].permute(0, 2, 3, 4, 1)  # (N, C, T, H, W) -> (N, T, H, W, C)
    titles = []
    for shares in soft.tolist():
        mixed = zip(shares, annotations.class_names, strict=True)
        title = " + ".join(f"{share:.0%} {short_text(name)}" for share, name in mixed if share > 0)
        titles.append(title.removeprefix("100% "))
    return _plot_rows(titles, frames)


def _plot_rows(titles: Iterable[str], clips: Sequence[torch.Tensor] | torch.Tensor) -> Figure:
    """Clips as rows of frames in order of time, each (T, H, W, C), with a title above each row."""
    num_frames = len(clips[0])
    figure = LabeledFigure(figsize=(1.25 * num_frames, 1.5 * len(clips)), layout="constrained")
    grid = figure.subplots(len(clips), num_frames, squeeze=False)
    for row, title, frames in zip(grid, titles, clips, strict=True):
        row[0].set_title(short_text(title, _TITLE_COLUMNS), fontsize=9, loc="left")
        for axes, frame in zip(row, frames.numpy(), strict=True):
            axes.imshow(frame)
            axes.set_axis_off()
    return figure
