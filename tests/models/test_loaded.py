"""Evaluation and export of the same weights see the same pixels and give the same probabilities."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torchvision.models import get_model_weights

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.evaluation.predictions import predict_clips, probabilities_of
from k400tiny_lib.evaluation.views import ViewProtocol, crop_views
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.export.parity import open_session, run_eager, run_onnx
from k400tiny_lib.export.resizing import resizing_graph
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry, LoadedModel, load_model
from k400tiny_lib.models.weights import build_model, model_input
from tests.conftest import write_clip

OF_TORCHVISION = ("r2plus1d_18", "r3d_18", "mc3_18", "s3d", "mvit_v2_s", "swin3d_t")
SIZE = (151, 259)  # height and width of frames


def load_weights(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """The model of the published weights' name, with random ones in the hub's cache."""
    [weights] = get_model_weights(name)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    cache = folder / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.manual_seed(0)
    state = build_model(name, len(weights.meta["categories"])).state_dict()
    # Untrained, the head hardly tells clips apart, and in s3d signals fade from layer to layer.
    state[f"{ARCHITECTURES[name].head}.weight"] *= 100
    if name == "s3d":
        for key, value in state.items():
            if key.endswith("running_var"):
                value /= 5
    torch.save(state, cache / weights.url.rpartition("/")[2])
    return load_model(Config(weights=str(weights)))


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_pixels_are_those_of_the_weights_own_transforms(name: str) -> None:
    [weights] = get_model_weights(name)
    geometry = Geometry.of_weights(weights, clip_len=2)
    frames = torch.randint(0, 256, (2, *SIZE, 3), dtype=torch.uint8)
    [evaluated] = crop_views(frames, geometry, 1)
    graph = resizing_graph("frames", "pictures", geometry)
    opsets = [onnx.helper.make_opsetid("", 18)]
    session = open_session(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8))
    [pictures] = session.run(None, {"frames": frames.numpy()[None]})
    exported = torch.from_numpy(pictures[0]).transpose(0, 1)  # (T, C, h, w) -> (C, T, h, w)
    # The graph sums in another order: what lies within 1e-4 of a half may be rounded the other way.
    difference = (exported - evaluated.float()).abs()
    assert difference.max() <= 1
    assert difference.count_nonzero() < 0.001 * difference.numel()
    ours = model_input(build_model(name, 3), evaluated[None])[0]
    theirs = weights.transforms()(frames.permute(0, 3, 1, 2))
    # The same pixels: float32 rounding is far below one gray level, 1 / 255 / 0.23 here.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "clip_len"), [("r2plus1d_18", 4), pytest.param("s3d", 8, marks=pytest.mark.slow)]
)
def test_probabilities_of_weights_are_those_of_their_exported_graph(
    name: str, clip_len: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_weights(name, tmp_path, monkeypatch)
    assert not loaded.geometry.antialias
    geometry = replace(loaded.geometry, clip_len=clip_len)  # shorter than published, for speed
    write_clip(tmp_path / "clip", seed=0, num_frames=clip_len + 3, size=SIZE)
    clip = Clip("clip", (1, clip_len + 2), 0, "source")
    rows = predict_clips(
        loaded.model,
        [clip],
        [0],
        tmp_path,
        geometry,
        ViewProtocol(1, 1),
        batch_size=1,
        num_workers=0,
        device=torch.device("cpu"),
    )
    evaluated = probabilities_of(rows)
    clips = ExportClips(Annotations({}, {"test": [clip]}), tmp_path, clip_len, 1)
    frames = clips.read(clip)[None]
    proto = export_graph(FramesToProbabilities(loaded.model, geometry).eval(), 18, {})
    exported = run_onnx(open_session(proto), frames)
    other = run_eager(
        loaded.model, Geometry(clip_len, geometry.resize[:1], geometry.crop_size), frames
    )
    assert np.abs(other - evaluated).max() > 5e-3
    # ONNX Runtime rounds a pixel in a thousand to the other one of two gray levels.
    np.testing.assert_allclose(exported, evaluated, atol=2e-4)
