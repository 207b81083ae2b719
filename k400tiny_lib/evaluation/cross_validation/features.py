"""Features of all clips: where they may be cross-validated, and the forward passes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.value_types import ALL_CLIPS, HEAD
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.evaluation.predictions import Floats, clip_batches
from k400tiny_lib.evaluation.views import ViewDataset, ViewProtocol
from k400tiny_lib.models.frozen import head_input
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

# Above that, doubted labels are for those who ask with split=all: the evaluation of a test split
# should not cost a pass over all of Kinetics-400.
MOST_CLIPS = 5000


def learned_problem(trained: Config | None) -> str:
    """Why a backbone may have learned from the clips that are evaluated; "" if it has not.

    Args:
        trained: the parameters of its training; None for published weights.
    """
    if trained is None:
        return "published weights have a head of other clips"
    if trained.train_layers != HEAD:
        return f"train_layers={trained.train_layers} has trained the backbone on these clips"
    if trained.load_model != NONE:
        return f"the backbone of load_model={trained.load_model} may have learned from these clips"
    return ""


def features_protocol(
    config: Config, annotations: Annotations, trained: Config | None
) -> ViewProtocol | None:
    """The views whose features an evaluation needs; None if it needs no features.

    With split=all they are the views asked for; for doubted labels the center view is enough.
    """
    if learned_problem(trained):
        return None
    if config.split == ALL_CLIPS:
        return ViewProtocol(config.num_clips, config.num_crops)
    return ViewProtocol(1, 1) if len(list(annotations.clips)) <= MOST_CLIPS else None


@torch.inference_mode()
def compute_features(
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
    """Run the backbone over all views of some clips; for Args see `predict_clips`.

    Returns:
        One row per clip, indexed by position: C features averaged over the views, then the C
        features of the center view, float32. Empty without positions.
    """
    dataset = ViewDataset(clips, data_path, geometry, protocol)
    clips_per_batch = max(1, batch_size // protocol.num_loaded)
    parts = []
    loader = clip_batches(dataset, positions, clips_per_batch, num_workers, "features")
    for views, batch_positions in loader:
        # (N, V, C, T, H, W) -> (N * V, C, T, H, W) and back
        features = _features_of_views(model, views.flatten(0, 1), batch_size, device)
        features = features.unflatten(0, (-1, protocol.num_loaded))
        averaged = features[:, : protocol.num_views].mean(1)
        both = torch.cat([averaged, features[:, protocol.center]], dim=1)
        parts.append(pd.DataFrame(both.numpy(), index=batch_positions.numpy()))
    return pd.concat(parts) if parts else pd.DataFrame()


def _features_of_views(
    model: nn.Module, views: Tensor, batch_size: int, device: torch.device
) -> Tensor:
    """Features of views, uint8 (N, C, T, H, W) to float32 (N, features) on the CPU."""
    parts = views.split(batch_size)
    return torch.cat([head_input(model, model_input(model, p.to(device))).cpu() for p in parts])


def join_features(parts: Sequence[pd.DataFrame], num_clips: int) -> tuple[Floats, Floats]:
    """The features of all processes, from `compute_features`: averaged and of the center view.

    Returns:
        Two arrays, float64 (num_clips, C), in the order of the positions.

    Raises:
        ValueError: if a clip is missing or occurs twice.
    """
    joined = pd.concat([part for part in parts if len(part)]).sort_index()
    if not np.array_equal(joined.index, np.arange(num_clips)):
        raise ValueError(f"{len(joined)} features do not cover {num_clips} clips once each")
    averaged, center = np.hsplit(joined.to_numpy(dtype=np.float64), 2)
    return averaged, center
