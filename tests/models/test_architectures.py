"""Every architecture: the published function and names, its clip size, all steps."""

import dataclasses
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.models.video
from pytorchvideo.models import hub
from torchvision.models import get_model, get_model_weights, list_models

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.gradcam import grad_cam
from k400tiny_lib.evaluation.predictions import predict_clips, probabilities_of
from k400tiny_lib.evaluation.views import ViewProtocol, crop_views
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph, frames_free
from k400tiny_lib.export.parity import compare_outputs, require_parity, run_eager
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry, load_model
from k400tiny_lib.models.weights import (
    architecture_of_model,
    build_model,
    class_count,
    load_weights,
    model_input,
)
from k400tiny_lib.training.worker import run
from tests.conftest import LABELS, NUM_FRAMES
from tests.helpers.training import CPU, config, make_job

DEEP = ("mvit_v2_s", "swin3d_t", "s3d", "slow_r50", "r3d_18")
OF_TORCHVISION = [name for name in ARCHITECTURES if name in list_models(torchvision.models.video)]
OF_PYTORCHVIDEO = [name for name in ARCHITECTURES if hasattr(hub, name)]
PUBLISHED = OF_TORCHVISION + OF_PYTORCHVIDEO
# The architectures whose module is not the published one as it is, with the smallest clip
# (T, H, W) that the published one takes or, for the pooling of x3d_s, that is beyond its window.
CHANGED = {
    "s3d": (14, 209, 209),
    "mvit_v2_s": (16, 224, 224),
    "x3d_s": (14, 161, 161),
    "slow_r50": (8, 193, 193),
}


def published(name: str, num_classes: int) -> Any:
    """The module of torchvision or pytorchvideo."""
    if name in OF_TORCHVISION:
        return get_model(name, weights=None, num_classes=num_classes)
    return getattr(hub, name)(model_num_class=num_classes)


def tiny(name: str) -> tuple[int, int]:
    """Frames and pixels of a clip small enough for a test."""
    return max(4, ARCHITECTURES[name].min_clip_len), max(16, ARCHITECTURES[name].min_crop_size)


def dropout_rates(model: torch.nn.Module) -> list[float]:
    """The rates of all dropouts above 0."""
    return [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p]


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_and_shapes_are_the_published_ones_with_dropout_before_the_head(name: str) -> None:
    model = build_model(name, num_classes=7, dropout=0.25)
    assert dropout_rates(model) == [0.25]
    ours = model.state_dict()
    theirs = published(name, 7).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert class_count(name, theirs) == 7


@pytest.mark.parametrize("name", CHANGED)
def test_the_model_computes_what_the_published_one_computes(name: str) -> None:
    torch.manual_seed(0)
    theirs = published(name, 5).eval()
    ours = build_model(name, num_classes=5, dropout=0.3).eval()
    assert load_weights(ours, theirs.state_dict(), "test")
    clips = torch.randn(1, 3, *CHANGED[name])
    with torch.inference_mode():
        logits, expected = ours(clips), theirs(clips)
    if name == "x3d_s":  # pytorchvideo's head ends in a softmax
        logits = logits.softmax(1)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_head_of_another_size_and_clips_of_another_size_fit(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(name, num_classes=3).eval()
    assert not dropout_rates(model)
    former = {k: v.clone() for k, v in model.state_dict().items()}
    source = build_model(name, num_classes=7).state_dict()
    assert not load_weights(model, source, "test")
    head = f"{architecture_of_model(model).head}.weight"
    for key, value in model.state_dict().items():
        kept = key.startswith(architecture_of_model(model).head)
        assert torch.equal(value, (former if kept else source)[key]), key
    assert not torch.equal(former[head], source[head][:3])
    num_frames, size = tiny(name)
    with torch.inference_mode():
        assert model(torch.randn(1, 3, num_frames + 3, size + 5, size + 5)).shape == (1, 3)


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_pixels_and_clips_are_those_that_torchvision_states(name: str) -> None:
    weights, size = get_model_weights(name).DEFAULT, ARCHITECTURES[name]
    preset = weights.transforms()
    assert (list(size.mean), list(size.std)) == (preset.mean, preset.std)
    assert preset.resize_size[0] == size.resize_size
    assert preset.crop_size == [size.crop_size, size.crop_size]
    stated = re.search(r"clip_len=(\d+)", weights.meta["_docs"])
    assert stated is not None
    # The one that is scored with more frames than its head pools at once.
    assert int(stated[1]) == (128 if name == "s3d" else size.clip_len)
    frames = torch.randint(0, 256, (2, 150, 200, 3), dtype=torch.uint8)
    crops = crop_views(frames, Geometry.of_weights(weights, size.clip_len), 1)
    ours = model_input(build_model(name, 3), crops[0][None])[0]
    theirs = preset(frames.permute(0, 3, 1, 2))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize(
    ("name", "pooling", "stride"),
    [("s3d", "avgpool", 8), ("x3d_s", "blocks.5.pool.pool", 1), ("slow_r50", "blocks.5.pool", 1)],
)
def test_a_published_head_pools_its_own_clip_at_once(name: str, pooling: str, stride: int) -> None:
    size = ARCHITECTURES[name]
    side = size.crop_size // 32
    window = published(name, 3).get_submodule(pooling).kernel_size
    assert tuple(window) == (size.clip_len // stride, side, side)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_clips_follow_the_architecture_unless_they_are_given(name: str) -> None:
    texts = {"data_path": "frames", "gt_csv": "labels.csv", "model": name}
    for recipe in ("k400tiny", "kinetics400"):
        resolved = resolve("main", texts | {"recipe": recipe})
        size = ARCHITECTURES[name]
        clip = (resolved.clip_len, resolved.resize_size, resolved.crop_size)
        assert clip == (size.clip_len, size.resize_size, size.crop_size)
    explicit = resolve("main", texts | {"clip_len": "20", "crop_size": "64"})
    assert (explicit.clip_len, explicit.crop_size) == (20, 64)


def test_an_architecture_needs_nothing_but_its_entry_in_the_table(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def build(num_classes: int, dropout: float) -> Any:
        model = ARCHITECTURES["r2plus1d_18"].build(num_classes, dropout)
        model.layer3, model.layer4 = torch.nn.Identity(), torch.nn.Identity()
        model.fc = torch.nn.Linear(128, num_classes)
        return model

    toy = dataclasses.replace(
        ARCHITECTURES["r2plus1d_18"], build=build, clip_len=5, resize_size=40, crop_size=32
    )
    monkeypatch.setitem(ARCHITECTURES, "toy", toy)
    resolved = resolve("train", {"data_path": "d", "annotations": "a", "model": "toy"})
    assert (resolved.clip_len, resolved.resize_size, resolved.crop_size) == (5, 40, 32)
    model = build_model(resolved.model, num_classes=3).eval()
    assert class_count("toy", model.state_dict()) == 3
    clips = torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8)
    assert model(model_input(model, clips)).shape == (1, 3)


@pytest.mark.parametrize(("parameter", "needed"), [("clip_len", 8), ("crop_size", 17)])
def test_a_clip_too_small_for_the_architecture_is_refused_before_work(
    parameter: str, needed: int
) -> None:
    clip = {"model": "s3d", "clip_len": "8", "resize_size": "17", "crop_size": "17"}
    resolve("main", clip)
    with pytest.raises(UserError, match=rf"^{parameter}: .* model=s3d\. Needed: at least {needed}"):
        resolve("main", clip | {parameter: str(needed - 1)})
    model = build_model("s3d", 3).eval()
    assert model(torch.zeros(1, 3, 8, 17, 17)).shape == (1, 3)
    with pytest.raises(RuntimeError):
        model(torch.zeros(1, 3, 8, 16, 16))


def test_the_smallest_clip_of_s3d_has_right_gradients() -> None:
    torch.manual_seed(0)
    convolution = build_model("s3d", 3).get_submodule("features.0.1.0")
    assert isinstance(convolution, torch.nn.Conv3d)
    clips = torch.randn(2, 64, ARCHITECTURES["s3d"].min_clip_len, 9, 9)
    gradients = []
    for library in (True, False):
        convolution.weight.grad = None
        with torch.backends.mkldnn.flags(enabled=library):
            convolution(clips).square().mean().backward()
        assert convolution.weight.grad is not None
        gradients.append(convolution.weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-6)  # float32 rounding


@pytest.mark.parametrize(
    "name",
    # The exporter takes a minute or more for attention, with its thousands of small operations, and
    # 20 seconds for others that are as deep.
    [pytest.param(n, marks=pytest.mark.slow) if n in DEEP else n for n in ARCHITECTURES],
)
def test_every_architecture_is_trained_evaluated_explained_and_exported(
    name: str, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    folders = sorted(tiny_data[0].iterdir())[::9]
    clips = [Clip(f.name, (0, NUM_FRAMES - 1), int(f.name[1]), f.name[:4]) for f in folders]
    categories = {label: index for index, label in enumerate(LABELS)}
    annotations = Annotations(categories, {"train": clips[:2], "val": clips[2:], "test": clips})
    num_frames, size = tiny(name)
    # So small a clip ends as a single pixel: BatchNorm over two of them has steep gradients.
    resolved = config(
        tiny_data[0],
        tmp_path,
        model=name,
        # In an untrained network this deep, signals fade from layer to layer.
        weights="imagenet" if ARCHITECTURES[name].imagenet else "none",
        clip_len=num_frames,
        resize_size=size,
        crop_size=size,
        batch_size=2,
        num_epochs=1,
        dropout=0.5,
        clip_grad_norm=1.0,
    )
    run(make_job(resolved, annotations), CPU)
    best = tmp_path / "best.pt"
    _tell_clips_apart(best, name)

    loaded = load_model(Config(checkpoint=str(best)), categories)
    rows = predict_clips(
        loaded.model,
        clips,
        range(len(clips)),
        tiny_data[0],
        loaded.geometry,
        ViewProtocol(1, 1),
        batch_size=2,
        num_workers=0,
        device=CPU.device,
    )
    assert np.ptp(probabilities_of(rows), axis=0).max() > 0.01
    one = torch.randn(1, 3, num_frames, size, size)
    assert grad_cam(loaded.model, one, 0).shape == (1, num_frames, size, size)

    if name == "r2plus1d_18":  # export/test_onnx_graph.py does it
        return
    graph = FramesToProbabilities(loaded.model, loaded.geometry).eval()
    proto = export_graph(graph, 18, {})
    generator = torch.Generator().manual_seed(0)
    shape = (num_frames, 24, 32, 3)
    frames = [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(5)
    ]
    eager = partial(run_eager, loaded.model, loaded.geometry)
    cases = compare_outputs(proto, eager, loaded.geometry, frames, frames_free(proto))
    # A pixel on the edge of two gray levels weighs more in so small a clip.
    require_parity(cases, tolerance=5e-4)


def _tell_clips_apart(checkpoint: Path, name: str) -> None:
    """Enlarge the head: after one step all clips look alike, and a wrong graph would pass."""
    content = torch.load(checkpoint, weights_only=True)
    content["model"][f"{ARCHITECTURES[name].head}.weight"] *= 20
    if name == "s3d":  # its BatchNorm has momentum 0.001: after one step it scales features down
        for key, value in content["model"].items():
            if key.endswith("running_var"):
                value /= 6
    torch.save(content, checkpoint)
