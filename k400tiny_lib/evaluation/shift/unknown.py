"""How sure the model is of clips that show none of its classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import Dataset

from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.evaluation.predictions import (
    clip_batches,
    probabilities_of,
    probabilities_of_views,
    probability_columns,
)
from k400tiny_lib.evaluation.shift.unknown_clips import UnknownClips, read_unknown
from k400tiny_lib.evaluation.threshold import Marked, confidences, mark
from k400tiny_lib.evaluation.views import ViewProtocol, crop_views
from k400tiny_lib.media.listing import describe_left_out
from k400tiny_lib.models.loaded import Geometry


class UnknownRows(NamedTuple):
    """Clips of none of the classes, and the predictions of all of them by `predict_unknown`."""

    clips: UnknownClips
    rows: pd.DataFrame


@dataclass(frozen=True)
class UnknownAnswers:
    """The answers to clips of none of the classes.

    Attributes:
        table: video, predicted, confidence (at the temperature in use), known (whether it reaches
            the threshold) and prob_<class id> (at temperature 1), one row per clip that was read.
        unreadable: name -> why, of clips that could not be read.
        left_out: what else is at the path and is no clip: name -> why.
        marked: how many of them the threshold marks.
        auroc: probability that a clip of the evaluated split is answered with more confidence than
            one of these (Hendrycks and Gimpel 2017, arXiv:1610.02136); None without a clip.
    """

    table: pd.DataFrame
    unreadable: Mapping[str, str]
    left_out: Mapping[str, str]
    marked: Marked
    auroc: float | None

    def scores(self) -> dict[str, float]:
        """unknown_caught and unknown_certain in percent, unknown_auroc; empty without a clip."""
        if self.auroc is None:
            return {}
        shares = {"caught": 100 * self.marked.below, "certain": 100 * self.marked.certain}
        return {f"unknown_{n}": v for n, v in (shares | {"auroc": self.auroc}).items()}

    def describe(self) -> list[str]:
        """The shares as a line for the console, and a line for each kind of what was not read."""
        lines = [
            f"unknown clips: {self.marked.below:.1%} of {self.marked.clips} are below the "
            f"threshold, {self.marked.certain:.1%} are answered with more than 0.99"
        ]
        lines += [f"skipped: {printable(name)}: {why}" for name, why in self.unreadable.items()]
        return lines + describe_left_out(self.left_out)


class _Views(Dataset[tuple[Tensor, str]]):
    """The averaged views of a clip, uint8 (V, C, T, crop, crop), and why it cannot be read."""

    def __init__(self, clips: Sequence[Path], geometry: Geometry, protocol: ViewProtocol) -> None:
        self.clips = clips
        self.geometry = geometry
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, str]:
        geometry, protocol = self.geometry, self.protocol
        try:
            frames = read_unknown(self.clips[position], geometry.clip_len, protocol.num_clips)
        except UserError as error:
            return torch.empty(0), printable(str(error))
        # (C, num_clips * T, crop, crop) of each crop
        crops = crop_views(torch.from_numpy(frames), geometry, protocol.num_crops)
        parts = [view for crop in crops for view in crop.split(geometry.clip_len, 1)]
        return torch.stack(parts), ""


@torch.inference_mode()
def predict_unknown(
    model: nn.Module,
    clips: UnknownClips,
    positions: Sequence[int],
    geometry: Geometry,
    protocol: ViewProtocol,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> pd.DataFrame:
    """Classify some of the clips; for Args see `predict_clips`.

    Returns:
        One row per clip, indexed by position: problem (empty for a clip that was read) and
        prob_<class id>, float64, averaged over the views. Empty without positions.
    """
    dataset = _Views(list(clips.clips.values()), geometry, protocol)
    rows = []
    # One by one: clips differ in what can be read.
    loader = clip_batches(dataset, positions, 1, num_workers, "unknown clips")
    for position, (views, [problem]) in zip(positions, loader, strict=True):
        row = pd.DataFrame({"problem": [problem]}, index=[position])
        if not problem:
            probabilities = probabilities_of_views(model, views[0], batch_size, device).mean(0)
            row = row.join(probability_columns(probabilities[None].numpy()).set_index(row.index))
        rows.append(row)
    return pd.concat(rows) if rows else pd.DataFrame()


def join_unknown(clips: UnknownClips, parts: Sequence[pd.DataFrame]) -> UnknownRows:
    """The rows of all processes, from `predict_unknown`, with the name of each clip as `video`."""
    joined = pd.concat([part for part in parts if len(part)]).sort_index()
    if not np.array_equal(joined.index, np.arange(len(clips.clips))):
        raise ValueError(f"{len(joined)} rows do not cover {len(clips.clips)} clips once each")
    joined.insert(0, "video", list(clips.clips))
    return UnknownRows(clips, joined)


def judge_unknown(
    unknown: UnknownRows, known: pd.DataFrame, temperature: float, threshold: float
) -> UnknownAnswers:
    """Measure how the threshold meets clips of none of the classes.

    Args:
        unknown: from `join_unknown`.
        known: predictions of the evaluated split.
        temperature: in use.
        threshold: of the confidence at that temperature.
    """
    clips, rows = unknown
    read = rows[rows["problem"] == ""].drop(columns="problem").reset_index(drop=True)
    problems: dict[str, Any] = rows.set_index("video")["problem"].to_dict()
    unreadable = {**clips.unusable, **{name: why for name, why in problems.items() if why}}
    if read.empty:
        return UnknownAnswers(read, unreadable, clips.left_out, mark(np.empty(0), threshold), None)
    confidence = confidences(read, temperature)
    table = read[["video"]].assign(
        predicted=probabilities_of(read).argmax(1),
        confidence=confidence,
        known=confidence >= threshold,
    )
    among = confidences(known, temperature)
    is_known = np.repeat([True, False], [len(among), len(confidence)])
    auroc = float(roc_auc_score(is_known, np.concatenate([among, confidence])))
    table = table.join(read.drop(columns="video"))
    return UnknownAnswers(table, unreadable, clips.left_out, mark(confidence, threshold), auroc)
