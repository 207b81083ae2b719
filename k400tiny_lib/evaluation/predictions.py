"""The predictions table: one row per clip; every score is computed from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.loader import batches
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

PROBABILITY = "prob_"  # column prob_<class id>
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ClipPredictions:
    """Predictions of some clips of a split, as one process computes them.

    Attributes:
        positions: int64 (N,), indices of the clips in the split.
        probabilities: float64 (N, K), averaged over the views.
        clip_predicted: int64 (N,), class predicted from the center view alone.
    """

    positions: Ints
    probabilities: Floats
    clip_predicted: Ints

    def save(self, path: Path) -> None:
        """Write the predictions as an .npz file."""
        with path.open("wb") as file:
            np.savez(file, **self.__dict__)

    @classmethod
    def load(cls, path: Path) -> "ClipPredictions":
        """The inverse of `save`."""
        with np.load(path) as content:
            return cls(*(content[name] for name in cls.__dataclass_fields__))


@torch.inference_mode()
def predict_clips(
    model: nn.Module,
    clips: Sequence[Clip],
    positions: Sequence[int],
    data_path: Path,
    geometry: Geometry,
    protocol: ViewProtocol,
    *,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> ClipPredictions:
    """Run a model over all views of some clips and average the probabilities per clip.

    Args:
        model: from `build_model`, on `device` in evaluation mode.
        clips: the split.
        positions: the clips that this process predicts.
        data_path: directory of the clip folders.
        geometry: frames and pixels of a view.
        protocol: the views.
        batch_size: views in one forward pass.
        num_workers: loader processes; decoding then overlaps with the forward passes.
        device: of the model.
    """
    dataset = ViewDataset(clips, data_path, geometry, protocol)
    clips_per_batch = max(1, batch_size // protocol.num_loaded)
    loader = clip_loader(dataset, positions, clips_per_batch, num_workers)
    predicted: list[Ints] = []
    averaged: list[Floats] = []
    clip_predicted: list[Ints] = []
    for views, batch_positions in batches(loader):
        # (N, V, C, T, H, W) -> (N * V, C, T, H, W) and back
        probabilities = probabilities_of_views(model, views.flatten(0, 1), batch_size, device)
        probabilities = probabilities.unflatten(0, (-1, protocol.num_loaded))
        predicted.append(batch_positions.numpy())
        averaged.append(probabilities[:, : protocol.num_views].mean(1).numpy())
        clip_predicted.append(probabilities[:, protocol.center].argmax(1).numpy())
    if not predicted:  # fewer clips than processes
        nothing = np.empty(0, np.int64)
        return ClipPredictions(nothing, np.empty((0, 0)), nothing)
    return ClipPredictions(
        np.concatenate(predicted), np.concatenate(averaged), np.concatenate(clip_predicted)
    )


def probabilities_of_views(
    model: nn.Module, views: Tensor, batch_size: int, device: torch.device
) -> Tensor:
    """Class probabilities of views, uint8 (N, C, T, H, W) to float64 (N, K) on the CPU."""
    logits = [model(model_input(model, part.to(device))) for part in views.split(batch_size)]
    return torch.cat(logits).double().softmax(1).cpu()


def clip_loader(
    dataset: Dataset[Any], positions: Sequence[int], batch_size: int, num_workers: int
) -> DataLoader[Any]:
    """Batches of a data set in the order of the positions."""
    return DataLoader(
        dataset,
        sampler=positions,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )


def make_table(clips: Sequence[Clip], parts: Sequence[ClipPredictions]) -> pd.DataFrame:
    """Join the predictions of all processes in the order of the clips.

    Returns:
        video, group, target, predicted (from the averaged probabilities), confidence,
        clip_predicted (from the center view alone) and prob_<class id>, one row per clip.

    Raises:
        ValueError: if a clip is missing or occurs twice.
    """
    parts = [part for part in parts if len(part.positions)]
    positions = np.concatenate([part.positions for part in parts])
    order = np.argsort(positions)
    if not np.array_equal(positions[order], np.arange(len(clips))):
        raise ValueError(f"{len(positions)} predictions do not cover {len(clips)} clips once each")
    probabilities = np.concatenate([part.probabilities for part in parts])[order]
    columns: dict[str, Any] = {
        "video": [clip.video for clip in clips],
        "group": [clip.group for clip in clips],
        "target": [clip.target for clip in clips],
        "predicted": probabilities.argmax(1),
        "confidence": probabilities.max(1),
        "clip_predicted": np.concatenate([part.clip_predicted for part in parts])[order],
    }
    names = [f"{PROBABILITY}{index}" for index in range(probabilities.shape[1])]
    return pd.concat([pd.DataFrame(columns), pd.DataFrame(probabilities, columns=names)], axis=1)


def table_of_probabilities(clips: Sequence[Clip], probabilities: Floats) -> pd.DataFrame:
    """The predictions table of a model that sees one view: float64 (N, K) in the clips' order."""
    part = ClipPredictions(np.arange(len(clips)), probabilities, probabilities.argmax(1))
    return make_table(clips, [part])


def probabilities_of(table: pd.DataFrame) -> Floats:
    """The class probabilities of a predictions table, float64 (N, K)."""
    columns = [column for column in table.columns if column.startswith(PROBABILITY)]
    values: Floats = table[columns].to_numpy(dtype=np.float64)
    return values


def read_predictions(path: Path, parameter: str) -> pd.DataFrame:
    """Read a predictions table from a CSV file.

    Args:
        path: the file.
        parameter: the parameter that named it, for the message.

    Raises:
        UserError: if it cannot be read as a table.
    """
    try:
        return pd.read_csv(path, dtype={"video": str, "group": str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{parameter}: {path} is not a table of predictions ({one_line(error)}). "
            "Needed: predictions.csv of evaluate."
        ) from None
