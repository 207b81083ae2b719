"""How the accuracy suffers when the frames do: light, blur, compression, lost frames, order."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.comparison import Comparison, paired
from k400tiny_lib.evaluation.predictions import Ints, clip_loader, probabilities_of_views
from k400tiny_lib.evaluation.views import Protocol, ViewDataset
from k400tiny_lib.models.loaded import Geometry

MAX_CLIPS = 48  # every condition is one more forward pass for each of them
CLEAN, REVERSED = "as recorded", "reversed order"
_ONE_VIEW = Protocol(num_clips=1, num_crops=1)


def brighten(clip: Tensor, factor: float) -> Tensor:
    """Multiply the light, uint8 (C, T, H, W)."""
    frames: Tensor = F.adjust_brightness(clip.transpose(0, 1), factor)
    return frames.transpose(0, 1)


def blur(clip: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every frame, uint8 (C, T, H, W); sigma in pixels of the crop."""
    size = 2 * round(3 * sigma) + 1
    frames: Tensor = F.gaussian_blur(clip.transpose(0, 1), [size, size], [sigma, sigma])
    return frames.transpose(0, 1)


def jpeg(clip: Tensor, quality: int) -> Tensor:
    """Compress every frame once more, uint8 (C, T, H, W)."""
    return torch.stack([F.jpeg(frame, quality) for frame in clip.unbind(1)], dim=1)


def hold(clip: Tensor, run: int) -> Tensor:
    """Drop all but the first of every `run` frames and show that one instead, (C, T, H, W)."""
    times = torch.arange(clip.shape[1])
    return clip[:, times // run * run]


def reverse(clip: Tensor) -> Tensor:
    """Play backwards, (C, T, H, W)."""
    return clip.flip(1)


# What is done to the crop that the model sees, uint8 (C, T, H, W), by name in the report.
CONDITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness x 0.5": partial(brighten, factor=0.5),
    "brightness x 1.5": partial(brighten, factor=1.5),
    "blur of 1 pixel": partial(blur, sigma=1.0),
    "blur of 2 pixels": partial(blur, sigma=2.0),
    "JPEG quality 30": partial(jpeg, quality=30),
    "JPEG quality 10": partial(jpeg, quality=10),
    "1 of 2 frames dropped": partial(hold, run=2),
    "3 of 4 frames dropped": partial(hold, run=4),
    REVERSED: reverse,
}


@dataclass(frozen=True)
class Probes:
    """Predictions under all conditions, as one process computes them.

    Attributes:
        positions: int64 (N,), places of the clips in the split.
        predicted: int64 (N, len(CONDITIONS)), class of the centre view.
    """

    positions: Ints
    predicted: Ints

    def save(self, path: Path) -> None:
        """Write them as an .npz file."""
        with path.open("wb") as file:
            np.savez(file, positions=self.positions, predicted=self.predicted)

    @classmethod
    def load(cls, path: Path) -> "Probes":
        """The inverse of `save`."""
        with np.load(path) as content:
            return cls(content["positions"], content["predicted"])


def probe_positions(num_clips: int) -> list[int]:
    """At most MAX_CLIPS places in a split, evenly spread."""
    count = min(num_clips, MAX_CLIPS)
    return [number * num_clips // count for number in range(count)]


class _ProbeDataset(Dataset[tuple[Tensor, int]]):
    """The centre view of clips under every condition: uint8 (conditions, C, T, crop, crop)."""

    def __init__(self, clips: Sequence[Clip], data_path: Path, geometry: Geometry) -> None:
        self.views = ViewDataset(clips, data_path, geometry, _ONE_VIEW)

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        views, position = self.views[position]
        return torch.stack([change(views[0]) for change in CONDITIONS.values()]), position


@torch.inference_mode()
def probe(
    model: nn.Module,
    clips: Sequence[Clip],
    positions: Sequence[int],
    data_path: Path,
    geometry: Geometry,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> Probes:
    """Classify the centre view of some clips under every condition; see `predict_clips`."""
    dataset = _ProbeDataset(clips, data_path, geometry)
    predicted: list[Any] = []
    for variants, _ in clip_loader(dataset, positions, 1, num_workers):
        probabilities = probabilities_of_views(model, variants[0], batch_size, device)
        predicted.append(probabilities.argmax(1).numpy())
    return Probes(
        np.array(positions, np.int64), np.array(predicted, np.int64).reshape(-1, len(CONDITIONS))
    )


def probe_table(table: pd.DataFrame, parts: Sequence[Probes]) -> pd.DataFrame:
    """One row per probed clip: video, group, target and the class predicted in each condition.

    Args:
        table: the predictions table; its centre view is the condition `as recorded`.
        parts: of all processes.
    """
    positions = np.concatenate([part.positions for part in parts])
    predicted = np.concatenate([part.predicted for part in parts])
    order = np.argsort(positions)
    rows = table.iloc[positions[order]].reset_index(drop=True)
    changed = pd.DataFrame(predicted[order], columns=list(CONDITIONS))
    known = rows[["video", "group", "target"]].assign(**{CLEAN: rows["clip_predicted"]})
    return pd.concat([known, changed], axis=1)


def robustness(probes: pd.DataFrame) -> dict[str, Comparison]:
    """Each condition against the same clips as recorded, by name of the condition."""
    recorded = (probes[CLEAN] == probes["target"]).to_numpy()
    return {
        name: paired((probes[name] == probes["target"]).to_numpy(), recorded, probes["group"])
        for name in CONDITIONS
    }
