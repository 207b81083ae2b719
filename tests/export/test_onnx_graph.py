"""The exported graph equals the evaluation path, and only then gets a name."""

from functools import partial

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.errors import UserError
from k400tiny_lib.export.onnx_graph import (
    FramesToProbabilities,
    _centre_offset,
    _takes_more_frames,
    export_graph,
    frames_free,
)
from k400tiny_lib.export.parity import (
    Comparison,
    compare,
    open_session,
    require_parity,
    run_eager,
    run_onnx,
)
from k400tiny_lib.registry.promotion import Verdict
from k400tiny_lib.registry.registry import load_registered, log_onnx, register
from tests.conftest import LABELS, REPOSITORY
from tests.helpers.export import CLIP_LEN, CROP, METADATA, RESIZE, build, clips, disturb

NAME = "test-model"
SIZES = {"resize_size": RESIZE, "crop_size": CROP}


def no_rival(version: str) -> Verdict:
    raise AssertionError(f"nobody asked to be compared with version {version}")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build()


@pytest.fixture
def proto(exported: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(exported)  # a copy of its own: mlflow changes what it logs


def test_batches_and_sizes_agree_with_the_eager_evaluation_path(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    found = compare(open_session(proto), partial(run_eager, model, **SIZES), clips(5), True)
    cases = {"batch 1", "batch 2", "batch 5", "336x336", "240x320", "128x128", "129x257"}
    assert {c.case for c in found} == cases | {"6 frames"}
    # Both resize in float32; a pixel on the edge of two grey levels moves one by 1e-5.
    assert require_parity(found, tolerance=5e-5) < 5e-5


def test_frames_smaller_than_the_crop_are_enlarged_alike(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    frames = torch.stack(clips(2, 20, 17))
    onnx_out = run_onnx(open_session(proto), frames)
    np.testing.assert_allclose(onnx_out, run_eager(model, frames, **SIZES), atol=5e-5)


def test_weights_disturbed_by_a_hundredth_fail_the_gate(proto: onnx.ModelProto) -> None:
    eager = partial(run_eager, disturb(build()), **SIZES)
    found = compare(open_session(proto), eager, clips(5), True)
    with pytest.raises(UserError, match=r"^tolerance: .* differs by .* Nothing was registered"):
        require_parity(found, tolerance=1e-4)


def test_a_network_of_fixed_length_is_found_out_before_the_export() -> None:
    class Fixed(torch.nn.Module):
        architecture = "r3d_18"  # whose pixels it takes

        def forward(self, clips: torch.Tensor) -> torch.Tensor:
            return clips.mean((3, 4)).flatten(1) @ torch.ones(3 * CLIP_LEN, 2)

    takes = [
        _takes_more_frames(FramesToProbabilities(network, RESIZE, CROP), CLIP_LEN)
        for network in (Fixed(), build("r3d_18"))
    ]
    assert takes == [False, True]


def test_views_are_averaged_and_calibrated_inside_the_graph() -> None:
    """Against the eager path, which averages softmaxes and then scales them in float64."""
    model, views, temperature = build("r3d_18"), 2, 1.7
    module = FramesToProbabilities(model, RESIZE, CROP, views, temperature).eval()
    proto = export_graph(module, CLIP_LEN, 18, METADATA)
    assert not frames_free(proto)
    session, videos = open_session(proto), clips(5, frames=views * CLIP_LEN)
    eager = partial(run_eager, model, **SIZES, views=views, temperature=temperature)
    require_parity(compare(session, eager, videos, False), tolerance=5e-5)
    swapped = torch.stack([torch.cat([v[CLIP_LEN:], v[:CLIP_LEN]]) for v in videos])
    same = run_onnx(session, torch.stack(videos))
    np.testing.assert_allclose(run_onnx(session, swapped), same, atol=1e-5)


def test_a_difference_that_is_not_a_number_fails_the_gate() -> None:
    with pytest.raises(UserError, match="batch 2 differs by nan"):
        require_parity([Comparison("batch 1", 0.0, True), Comparison("batch 2", np.nan, True)], 1.0)


@pytest.mark.parametrize("size", range(112, 260))
def test_the_crop_starts_where_torchvisions_does(size: int) -> None:
    assert _centre_offset(size, 112) == round((size - 112) / 2.0)


def test_the_file_does_not_say_where_it_was_made(exported: bytes) -> None:
    assert str(REPOSITORY).encode() not in exported


def test_the_file_says_what_a_user_must_know(proto: onnx.ModelProto) -> None:
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["class_names"] == '["sliding", "growing", "turning"]'
    assert properties["frames_free"] == "true"
    assert properties["clip_len"] == "4"
    [frames] = proto.graph.input
    assert frames.name == "frames"
    dims = [d.dim_value or d.dim_param for d in frames.type.tensor_type.shape.dim]
    assert dims[4] == 3
    assert all(isinstance(dims[axis], str) for axis in range(4))


@pytest.fixture
def registered(store: str, proto: onnx.ModelProto) -> str:
    with mlflow.start_run():
        uri = log_onnx(proto, METADATA)
        register(uri, NAME, {"k": "v"}, "always", no_rival)
    return uri


def test_the_registered_model_loads_both_ways_and_predicts_batches(
    registered: str, model: torch.nn.Module
) -> None:
    uri = f"models:/{NAME}@champion"
    session = open_session(mlflow.onnx.load_model(uri))
    pyfunc = mlflow.pyfunc.load_model(uri)
    for count in (1, 3):
        frames = torch.stack(clips(count))
        expected = run_eager(model, frames, **SIZES)
        np.testing.assert_allclose(run_onnx(session, frames), expected, atol=5e-5)
        outputs = pyfunc.predict(frames.numpy())["probabilities"]
        np.testing.assert_allclose(outputs, expected, atol=5e-5)
        assert outputs.dtype == np.float32
    assert load_registered("auto", NAME).class_names == list(LABELS)


def test_never_promotes_only_where_there_is_no_champion(
    registered: str, store: str, proto: onnx.ModelProto
) -> None:
    client = MlflowClient()
    with mlflow.start_run():
        uri = log_onnx(proto, METADATA)
        second, verdict = register(uri, NAME, {}, "never", no_rival)
        assert register(uri, "another", {}, "never", no_rival)[1].promoted
    assert not verdict.promoted
    assert client.get_model_version_by_alias(NAME, "champion").version == 1
    assert client.get_model_version_by_alias(NAME, "challenger").version == second.version


def test_predicting_without_a_registered_model_says_how_to_get_one(store: str) -> None:
    with pytest.raises(UserError, match=r"^model_uri: models:/nothing@champion .*-e main"):
        load_registered("auto", "nothing")
