"""Accuracy on corrupted frames: light, blur, compression, dropped frames, reversed order."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.evaluation.comparison import PairedComparison, compare_predictions
from k400tiny_lib.evaluation.predictions import clip_batches, probabilities_of_views
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import Geometry

MAX_CLIPS = 48  # each corruption costs one more forward pass per clip
UNCORRUPTED, REVERSED = "as recorded", "reversed order"


def brighten(clip: Tensor, factor: float) -> Tensor:
    """Multiply the brightness, uint8 (C, T, H, W)."""
    frames: Tensor = F.adjust_brightness(clip.transpose(0, 1), factor)
    return frames.transpose(0, 1)


def blur(clip: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of every frame, uint8 (C, T, H, W); sigma in pixels of the crop."""
    size = 2 * round(3 * sigma) + 1
    frames: Tensor = F.gaussian_blur(clip.transpose(0, 1), [size, size], [sigma, sigma])
    return frames.transpose(0, 1)


def jpeg(clip: Tensor, quality: int) -> Tensor:
    """Compress every frame as JPEG, uint8 (C, T, H, W)."""
    return torch.stack([F.jpeg(frame, quality) for frame in clip.unbind(1)], dim=1)


def drop_frames(clip: Tensor, keep_every: int) -> Tensor:
    """Keep one of every `keep_every` frames and repeat it in place of the others, (C, T, H, W)."""
    times = torch.arange(clip.shape[1])
    return clip[:, times // keep_every * keep_every]


def reverse(clip: Tensor) -> Tensor:
    """Play backwards, (C, T, H, W)."""
    return clip.flip(1)


# Applied to the crop that the model sees, uint8 (C, T, H, W); the keys name them in the report.
CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness x 0.5": partial(brighten, factor=0.5),
    "brightness x 1.5": partial(brighten, factor=1.5),
    "blur of 1 pixel": partial(blur, sigma=1.0),
    "blur of 2 pixels": partial(blur, sigma=2.0),
    "JPEG quality 30": partial(jpeg, quality=30),
    "JPEG quality 10": partial(jpeg, quality=10),
    "1 of 2 frames dropped": partial(drop_frames, keep_every=2),
    "3 of 4 frames dropped": partial(drop_frames, keep_every=4),
    REVERSED: reverse,
}


def corrupted_positions(num_clips: int) -> list[int]:
    """Positions of the clips to corrupt: at most MAX_CLIPS, spread evenly over the split."""
    count = min(num_clips, MAX_CLIPS)
    return [number * num_clips // count for number in range(count)]


class _CorruptedDataset(Dataset[Tensor]):
    """The center view of a clip under every corruption: uint8 (corruptions, C, T, crop, crop)."""

    def __init__(self, clips: Sequence[Clip], data_path: Path, geometry: Geometry) -> None:
        self.views = ViewDataset(clips, data_path, geometry, ViewProtocol(1, 1))

    def __len__(self) -> int:
        return len(self.views)

    def __getitem__(self, position: int) -> Tensor:
        view = self.views[position][0][0]
        return torch.stack([corrupt(view) for corrupt in CORRUPTIONS.values()])


@torch.inference_mode()
def predict_corrupted(
    model: nn.Module,
    clips: Sequence[Clip],
    positions: Sequence[int],
    data_path: Path,
    geometry: Geometry,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> pd.DataFrame:
    """Classify the center view of some clips under every corruption; for Args see `predict_clips`.

    Returns:
        The predicted class ids: one row per clip, indexed by position, one column per corruption.
    """
    dataset = _CorruptedDataset(clips, data_path, geometry)
    predicted = [
        probabilities_of_views(model, views[0], batch_size, device).argmax(1).numpy()
        for views in clip_batches(dataset, positions, 1, num_workers, "robustness")
    ]
    return pd.DataFrame(predicted, index=list(positions), columns=list(CORRUPTIONS), dtype=int)


def corruption_table(table: pd.DataFrame, parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row per corrupted clip: video, group, target and the class predicted each time.

    Args:
        table: the predictions table; its center view is the column `as recorded`.
        parts: from `predict_corrupted`, of all processes.
    """
    clips = table[["video", "group", "target", "clip_predicted"]]
    clips = clips.rename(columns={"clip_predicted": UNCORRUPTED})
    return clips.join(pd.concat(parts).sort_index(), how="right").reset_index(drop=True)


def compare_corrupted(table: pd.DataFrame) -> dict[str, PairedComparison]:
    """Each corruption in a `corruption_table` compared with the clips as recorded, by its name."""
    recorded = table[UNCORRUPTED]
    return {name: compare_predictions(table, table[name], recorded) for name in CORRUPTIONS}
