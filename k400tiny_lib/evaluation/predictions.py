"""The predictions table: one row per clip; every score is computed from it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from k400tiny_lib.console import progress
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.loader import batches, end_with_parent
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

PROBABILITY = "prob_"  # column prob_<class id>
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
) -> pd.DataFrame:
    """Run a model over all views of some clips and average the probabilities per clip.

    Args:
        model: from `build_model`, on `device` in evaluation mode.
        clips: the split.
        positions: the clips that this process predicts.
        data_path: directory of the clip folders.
        geometry, protocol: the pixels of a view, and the views.
        batch_size: views in one forward pass.
        num_workers: loader processes; decoding then overlaps with the forward passes.
        device: of the model.

    Returns:
        One row per clip, indexed by position: prob_<class id>, float64, averaged over the views,
        and clip_predicted, the class from the center view alone. Empty without positions.
    """
    dataset = ViewDataset(clips, data_path, geometry, protocol)
    clips_per_batch = max(1, batch_size // protocol.num_loaded)
    parts = []
    loader = clip_batches(dataset, positions, clips_per_batch, num_workers, "predict")
    for views, batch_positions in loader:
        # (N, V, C, T, H, W) -> (N * V, C, T, H, W) and back
        probabilities = probabilities_of_views(model, views.flatten(0, 1), batch_size, device)
        probabilities = probabilities.unflatten(0, (-1, protocol.num_loaded))
        part = probability_columns(probabilities[:, : protocol.num_views].mean(1).numpy())
        part["clip_predicted"] = probabilities[:, protocol.center].argmax(1).numpy()
        parts.append(part.set_index(batch_positions.numpy()))
    return pd.concat(parts) if parts else pd.DataFrame()  # there can be fewer clips than processes


def probabilities_of_views(
    model: nn.Module, views: Tensor, batch_size: int, device: torch.device
) -> Tensor:
    """Class probabilities of views, uint8 (N, C, T, H, W) to float64 (N, K) on the CPU."""
    logits = [model(model_input(model, part.to(device))) for part in views.split(batch_size)]
    return torch.cat(logits).double().softmax(1).cpu()


def clip_batches(
    dataset: Dataset[Any], positions: Sequence[int], batch_size: int, num_workers: int, what: str
) -> Iterator[Any]:
    """Batches of a data set in the order of the positions; raises like `batches`.

    A progress bar says what is done with them.
    """
    loader = DataLoader(
        dataset,
        sampler=positions,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=end_with_parent,
    )
    yield from progress(batches(loader), len(loader), what, "batch")


def make_table(clips: Sequence[Clip], parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join the predictions of all processes, from `predict_clips`, in the order of the clips.

    Returns:
        video, group, target, predicted (from the averaged probabilities), confidence,
        clip_predicted (from the center view alone) and prob_<class id>, one row per clip.

    Raises:
        ValueError: if a clip is missing or occurs twice.
    """
    joined = pd.concat([part for part in parts if len(part)]).sort_index()
    if not np.array_equal(joined.index, np.arange(len(clips))):
        raise ValueError(f"{len(joined)} predictions do not cover {len(clips)} clips once each")
    probabilities = probabilities_of(joined)
    rows = [(clip.video, clip.group, clip.target) for clip in clips]
    table = pd.DataFrame(rows, columns=["video", "group", "target"]).assign(
        predicted=probabilities.argmax(1),
        confidence=probabilities.max(1),
        clip_predicted=joined["clip_predicted"].to_numpy(),
    )
    return table.join(probability_columns(probabilities))


def table_of_probabilities(clips: Sequence[Clip], probabilities: Floats) -> pd.DataFrame:
    """The predictions table of a model that sees one view: float64 (N, K) in the clips' order."""
    columns = probability_columns(probabilities)
    return make_table(clips, [columns.assign(clip_predicted=probabilities.argmax(1))])


def probability_columns(probabilities: Floats) -> pd.DataFrame:
    """The columns prob_<class id> of a predictions table, from float64 (N, K)."""
    return pd.DataFrame(probabilities).add_prefix(PROBABILITY)


def probabilities_of(table: pd.DataFrame) -> Floats:
    """The class probabilities of a predictions table, float64 (N, K)."""
    values: Floats = table.filter(regex=f"^{PROBABILITY}").to_numpy(dtype=np.float64)
    return values


def read_predictions(path: Path, parameter: str) -> pd.DataFrame:
    """Read a predictions table from a CSV file that a parameter names.

    Raises:
        UserError: if it cannot be read as a table; names the parameter.
    """
    try:
        return pd.read_csv(path, dtype={"video": str, "group": str})
    except (OSError, ValueError) as error:
        raise UserError(
            f"{parameter}: {path} is not a table of predictions ({one_line(error)}). "
            "Needed: predictions.csv of evaluate."
        ) from None
