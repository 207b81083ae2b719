"""The predictions table: one row per clip, from which every score follows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import nn
from torch.utils.data import DataLoader

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading import batches, worker_count
from k400tiny_lib.data.transforms import normalise
from k400tiny_lib.evaluation.views import ViewDataset

PROBABILITY = "prob_"  # column prob_<class id>


@torch.inference_mode()
def predict_clips(
    model: nn.Module,
    clips: Sequence[Clip],
    data_path: Path,
    geometry: Config,
    views: Config,
    device: torch.device,
) -> pd.DataFrame:
    """Run a model over all views of all clips and average their probabilities per clip.

    Args:
        model: in evaluation mode, from float32 (N, C, T, H, W) to logits (N, K).
        clips: what to predict.
        data_path: directory of the clip folders.
        geometry: clip_len, resize_size and crop_size that the model was trained with.
        views: num_clips, num_crops, batch_size (views per forward pass) and num_workers.
        device: where the model is.

    Returns:
        One row per clip in their order: video, group, target, predicted (of the averaged
        probabilities), confidence, clip_predicted (of the centre view alone) and prob_<id>.
    """
    dataset = ViewDataset(
        clips, data_path,
        clip_len=geometry.clip_len, resize_size=geometry.resize_size,
        crop_size=geometry.crop_size, num_clips=views.num_clips, num_crops=views.num_crops,
    )  # fmt: skip
    num_views = views.num_clips * views.num_crops
    loader = DataLoader(
        dataset,
        batch_size=max(1, views.batch_size // num_views),
        num_workers=worker_count(views.num_workers, 1),
    )
    averaged: list[npt.NDArray[np.float64]] = []
    centre: list[npt.NDArray[np.int64]] = []
    for batch, _, _ in batches(loader):
        flat = batch.flatten(0, 1)  # (N, V, C, T, H, W) -> (N * V, C, T, H, W)
        logits = [model(normalise(part.to(device))) for part in flat.split(views.batch_size)]
        probabilities = torch.cat(logits).double().softmax(1).unflatten(0, (-1, num_views))
        averaged.append(probabilities.mean(1).cpu().numpy())
        centre.append(probabilities[:, dataset.centre].argmax(1).cpu().numpy())
    return _table(clips, np.concatenate(averaged), np.concatenate(centre))


def _table(
    clips: Sequence[Clip], probabilities: npt.NDArray[np.float64], centre: npt.NDArray[np.int64]
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "video": [clip.video for clip in clips],
            "group": [clip.group for clip in clips],
            "target": [clip.target for clip in clips],
            "predicted": probabilities.argmax(1),
            "confidence": probabilities.max(1),
            "clip_predicted": centre,
        }
    )
    columns = [f"{PROBABILITY}{index}" for index in range(probabilities.shape[1])]
    return pd.concat([table, pd.DataFrame(probabilities, columns=columns)], axis=1)


def probabilities_of(table: pd.DataFrame) -> npt.NDArray[np.float64]:
    """The class probabilities of a predictions table, float64 (N, K)."""
    columns = [column for column in table.columns if column.startswith(PROBABILITY)]
    values: npt.NDArray[np.float64] = table[columns].to_numpy(dtype=np.float64)
    return values
