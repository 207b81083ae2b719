"""train_layers: what is frozen stays, and kept features train the head that fresh ones train."""

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.data.loading.feature_cache import CachedFeatures, resolve_features
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.frozen import FeatureHead, freeze, head_input, learning_buffers
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.resuming import check_resumable
from k400tiny_lib.training.sample_predictions import sample_predictions
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import BuildModel, keep_features, make_train_state
from tests.helpers.training import CPU, Small, annotate, build_small, config

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


@pytest.mark.parametrize("name", ["mc3_18", "s3d", "mvit_v2_s", "x3d_s"])
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
    # Where the published head averages over positions, there are several of them.
    clip_len = {"s3d": 32, "x3d_s": 15, "slow_r50": 10}.get(name, 4)
    clips = torch.rand(2, 3, clip_len, 32, 32)
    with torch.no_grad():
        features = head_input(model, clips)
        head = FeatureHead(model).eval()
        torch.testing.assert_close(head(features), model(clips), rtol=1e-4, atol=1e-5)
    assert features.shape == (2, features.shape[1])
    assert features.dtype == torch.float32
    # Its dropout is that before the head, and there is no other.
    assert head.dropout.p == 0.25
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout) and m.p] == [0.25]


class Staged(Small):
    """`Small` with a last stage."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.layer4 = nn.Sequential(nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8))

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.layer4(F.relu(self.norm(self.conv(clips)))).mean((2, 3, 4)))
        return logits


def build_staged(config: Config, num_classes: int) -> nn.Module:
    return Staged(num_classes)


def test_the_last_stage_learns_after_the_head_and_the_rest_never(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(
        tiny_data[0],
        tmp_path,
        train_layers="last_stage",
        num_epochs=2,
        freeze_epochs=1,
        weight_decay=0.1,
        ema_decay=0.5,
    )
    state = make_train_state(settings, annotate(tiny_data[0]), CPU, build=build_staged)
    optimized = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    named = dict(state.model.named_parameters())
    stage = {name for name in named if name.startswith(("layer4.", "fc."))}
    assert optimized == {id(named[name]) for name in stage}
    states = [weights(state.model)]
    fit(state, lambda state, *_: states.append(weights(state.model)))
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]) is not name.startswith("fc."), name
        learns = name.startswith(("layer4.", "fc."))
        assert torch.equal(states[1][name], states[2][name]) is not learns, name


@pytest.mark.parametrize("name", ["swin3d_t", "x3d_s"])
def test_nothing_is_dropped_and_no_statistic_moves_in_a_frozen_backbone(name: str) -> None:
    model: Any = build_model(name, 3, dropout=0.25)
    stage = ARCHITECTURES[name].last_stage
    for layers, prefixes in (("last_stage", stage), ("head", ())):
        freeze(model.train(), layers)
        for path, module in model.named_modules():
            if isinstance(module, nn.BatchNorm3d | StochasticDepth):
                assert module.training is path.startswith(prefixes or ("none",)), path
            if isinstance(module, nn.Dropout) and module.p:
                assert module.training
        learning = {name for name, _ in model.named_buffers() if name.startswith(prefixes or "-")}
        assert len(learning_buffers(model, layers)) == len(learning)
    freeze(model.train(), "all")
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def small_state(data_path: Path, folder: Path, **changes: Any) -> TrainState:
    annotations = annotate(data_path, num_val=3, num_train=8)
    return frozen_state(data_path, folder, annotations, build_small, **changes)


def files(folder: Path) -> set[Path]:
    return set((folder / "cache").rglob("view*.npy"))


def test_features_are_kept_by_what_they_depend_on(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations = annotate(tiny_data[0], num_val=3, num_train=8)

    def build(config: Config, num_classes: int, number: int = 0) -> nn.Module:
        torch.manual_seed(number)  # pretrained weights do not depend on the seed
        return Small(num_classes)

    def added(build: BuildModel = build, **changes: Any) -> int:
        before = files(tmp_path)
        settings = {"num_epochs": 9, "feature_views": 2} | changes
        frozen_state(tiny_data[0], tmp_path, annotations, build, **settings)
        return len(files(tmp_path) - before)

    assert added() == 3  # two views of the training clips, one of the validation clips
    assert added(lr=1.0, num_epochs=5, batch_size=2, dropout=0.5, momentum=0.0) == 0
    assert added(feature_views=3) == 1
    assert added(feature_views=9, num_epochs=4) == 1  # no more than are used
    assert added(augmentation="none") == 2  # validation clips have none
    assert added(seed=1) == 2
    assert added(build=partial(build, number=1)) == 3  # other weights
    assert added(crop_size=24) == 3
    assert added(no_flip_classes="sliding") == 2
    assert added(no_flip_classes="turning") == 0  # none of these clips
    assert added(augmentation="none", feature_views=1) == 0


def test_features_follow_the_frames_not_their_names(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    data_path = tmp_path / "frames"
    shutil.copytree(tiny_data[0], data_path)
    small_state(data_path, tmp_path)
    before = files(tmp_path)
    clip = next(iter(sorted(data_path.iterdir())))
    os.utime(next(clip.iterdir()), (0, 0))  # looked at again, and found the same
    small_state(data_path, tmp_path)
    assert files(tmp_path) == before
    first, second = sorted(clip.iterdir())[:2]
    shutil.copy(first, second)
    small_state(data_path, tmp_path)
    assert len(files(tmp_path)) == 2 * len(before)


def test_epochs_take_turns_in_the_views(tiny_data: tuple[Path, Path], tmp_path: Path) -> None:
    state = small_state(tiny_data[0], tmp_path, num_epochs=9, feature_views=3)
    kept = state.train_loader.dataset
    assert isinstance(kept, CachedFeatures)
    clips = kept.pixels
    for epoch in (0, 2, 4):
        kept.epoch = clips.epoch = epoch
        pixels = torch.stack([clips[position][0] for position in range(len(clips))])
        with torch.no_grad():
            expected = head_input(state.model.eval(), state.input_of(pixels))
        features = torch.stack([kept[position][0] for position in range(len(kept))])
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
    clips.epoch = 0
    other = torch.stack([clips[position][0] for position in range(len(clips))])
    assert not torch.equal(other, pixels)
    assert torch.equal(sample_predictions(state)[0][0], state.val_loader.dataset.pixels[0][0])  # type: ignore[attr-defined]


def test_where_no_features_are_kept_a_line_says_why(
    tiny_data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for changes, reason in (
        ({"augmentation": "strong"}, "augmentation=strong mixes the pixels of a batch"),
        ({"frame_cache": "none"}, "frame_cache=none decodes all clips in each epoch"),
    ):
        state = small_state(tiny_data[0], tmp_path, num_epochs=1, **changes)
        assert not isinstance(state.train_loader.dataset, CachedFeatures)
        assert f"features: not kept, since {reason}" in capsys.readouterr().out
        before = weights(state.model)
        after, _ = trained(state)
        assert {k for k, v in after.items() if not torch.equal(v, before[k])} == {
            "fc.weight",
            "fc.bias",
        }


def test_what_cannot_be_combined_is_refused() -> None:
    parameters = {"data_path": "frames", "annotations": "a.json", "load_model": "best.pt"}
    with pytest.raises(UserError, match=r"^freeze_epochs: 2, but with train_layers=head only"):
        resolve("train", parameters | {"freeze_epochs": "2", "train_layers": "head"})
    both = resolve("train", parameters | {"freeze_epochs": "2", "train_layers": "last_stage"})
    assert both.freeze_epochs == 2
    before = Config().to_dict()
    for former in (before, {k: v for k, v in before.items() if k != "train_layers"}):
        with pytest.raises(UserError, match=r"^resume: .*train_layers=all, this run has .*=head"):
            check_resumable({"config": former}, Config(train_layers="head"), {})
