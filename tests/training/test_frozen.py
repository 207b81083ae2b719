"""train_layers: what is frozen stays, and kept features train the head that fresh ones train."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.data.loading.feature_cache import CachedFeatures, resolve_features
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.frozen import FeatureHead, head_input
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import BuildModel, keep_features, make_train_state
from tests.helpers.training import CPU, annotate, config

# The same float32 features in batches of other sizes, and a few updates on them.
ROUNDING: dict[str, float] = {"rtol": 1e-4, "atol": 1e-5}


def smallest_clip(name: str) -> dict[str, int]:
    side = max(32, ARCHITECTURES[name].min_crop_size)
    clip_len = max(4, ARCHITECTURES[name].min_clip_len)
    return {"clip_len": clip_len, "resize_size": side, "crop_size": side}


def frozen_state(
    data_path: Path,
    folder: Path,
    annotations: Annotations,
    build: BuildModel | None = None,
    keep: bool = True,
    **changes: Any,
) -> TrainState:
    """A state that trains the head, on kept features or not."""
    defaults: dict[str, Any] = {
        "train_layers": "head",
        "lr": 0.1,
        "scheduler": "constant",
        "cache_dir": str(folder / "cache"),
        "frame_cache": "auto" if keep else "none",
    }
    settings = config(data_path, folder, **(defaults | changes))
    state = make_train_state(settings, annotations, CPU, build=build)
    if digest := resolve_features(settings, annotations):
        keep_features(state, annotations, digest)
    return state


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def trained(state: TrainState) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    """The weights after training, and the metrics of each epoch."""
    seen: list[dict[str, float]] = []
    fit(state, lambda _, metrics, best: seen.append(metrics))
    return weights(state.model), seen


@pytest.mark.parametrize("name", ["r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t", "x3d_s"])
def test_the_head_learns_the_same_from_kept_features_as_from_clips(
    tiny_data: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    annotations = annotate(tiny_data[0], num_val=3, num_train=8)
    changes: dict[str, Any] = {
        "model": name,
        "num_epochs": 3,
        "feature_views": 2,
        "dropout": 0.5,
        "augmentation": "standard",
        **smallest_clip(name),
    }
    kept = frozen_state(tiny_data[0], tmp_path, annotations, **changes)
    assert isinstance(kept.train_loader.dataset, CachedFeatures)
    before = weights(kept.model)
    head, metrics = trained(kept)
    fresh = frozen_state(tiny_data[0], tmp_path, annotations, keep=False, **changes)
    same_head, same_metrics = trained(fresh)
    prefix = f"{ARCHITECTURES[name].head}."
    for key, value in before.items():
        assert torch.equal(head[key], value) is not key.startswith(prefix), key
        torch.testing.assert_close(head[key], same_head[key], **ROUNDING, msg=key)
    for epoch, same in zip(metrics, same_metrics, strict=True):
        for key in ("train_loss", "val_loss"):
            assert epoch[key] == pytest.approx(same[key], rel=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_on_features_gives_the_logits_of_the_model(name: str) -> None:
    model: Any = build_model(name, 3, dropout=0.25).eval()
    side = 64 if name == "s3d" else 32  # s3d then has several positions
    clips = torch.rand(2, 3, max(4, ARCHITECTURES[name].min_clip_len), side, side)
    with torch.no_grad():
        features = head_input(model, clips)
        head = FeatureHead(model).eval()
        torch.testing.assert_close(head(features), model(clips), rtol=1e-4, atol=1e-5)
    assert features.shape == (2, features.shape[1])
    assert features.dtype == torch.float32
    # Its dropout is that before the head, and there is no other.
    assert head.dropout.p == 0.25
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p] == [0.25]
