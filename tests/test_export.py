"""The exported graph equals the evaluation path, and only then gets a name."""

from typing import Any

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.errors import UserError
from k400tiny_lib.export.graph import FramesToProbabilities, _centre_offset, export_graph
from k400tiny_lib.export.parity import (
    Comparison,
    compare,
    open_session,
    require_parity,
    run_eager,
    run_onnx,
)
from k400tiny_lib.export.registry import load_registered, log_onnx, register
from k400tiny_lib.model import build_model

CLIP_LEN, RESIZE, CROP, CLASSES = 4, 36, 32, ["a", "b", "c"]
METADATA: dict[str, Any] = {"class_names": CLASSES, "clip_len": CLIP_LEN}
NAME = "test-model"


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("r2plus1d_18", len(CLASSES)).eval()


@pytest.fixture(scope="module")
def graph(model: torch.nn.Module) -> bytes:
    module = FramesToProbabilities(model, RESIZE, CROP).eval()
    serialised: bytes = export_graph(module, CLIP_LEN, 18, METADATA).SerializeToString()
    return serialised


@pytest.fixture
def proto(graph: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(graph)  # a copy of its own: mlflow changes what it logs


def clips(count: int, height: int = 48, width: int = 64) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (CLIP_LEN, height, width, 3)
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)
    ]


def test_batches_and_sizes_agree_with_the_eager_evaluation_path(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    found = compare(open_session(proto), model, clips(5), RESIZE, CROP)
    assert {c.case for c in found} >= {"batch 1", "batch 2", "batch 5", "240x320", "129x257"}
    # Both resize in float32; a pixel on the edge of two grey levels moves one by 1e-5.
    assert require_parity(found, tolerance=5e-5) < 5e-5


def test_frames_smaller_than_the_crop_are_enlarged_alike(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    frames = torch.stack(clips(2, 20, 17))
    onnx_out = run_onnx(open_session(proto), frames)
    np.testing.assert_allclose(onnx_out, run_eager(model, frames, RESIZE, CROP), atol=5e-5)


def test_weights_disturbed_by_a_hundredth_fail_the_gate(proto: onnx.ModelProto) -> None:
    torch.manual_seed(0)
    disturbed = build_model("r2plus1d_18", len(CLASSES)).eval()
    with torch.no_grad():
        for parameter in disturbed.parameters():
            parameter *= 1 + 0.01 * torch.randn_like(parameter)
    found = compare(open_session(proto), disturbed, clips(5), RESIZE, CROP)
    with pytest.raises(UserError, match=r"^tolerance: .* differs by .* Nothing was registered"):
        require_parity(found, tolerance=1e-4)


def test_a_difference_that_is_not_a_number_fails_the_gate() -> None:
    with pytest.raises(UserError, match="batch 2 differs by nan"):
        require_parity([Comparison("batch 1", 0.0, True), Comparison("batch 2", np.nan, True)], 1.0)


@pytest.mark.parametrize("size", range(112, 260))
def test_the_crop_starts_where_torchvisions_does(size: int) -> None:
    assert _centre_offset(size, 112) == round((size - 112) / 2.0)


def test_the_file_says_what_a_user_must_know(proto: onnx.ModelProto) -> None:
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["class_names"] == '["a", "b", "c"]'
    assert properties["clip_len"] == "4"
    [frames] = proto.graph.input
    assert frames.name == "frames"
    dims = [d.dim_value or d.dim_param for d in frames.type.tensor_type.shape.dim]
    assert (dims[1], dims[4]) == (CLIP_LEN, 3)
    assert all(isinstance(dims[axis], str) for axis in (0, 2, 3))


@pytest.fixture
def registered(store: str, proto: onnx.ModelProto) -> str:
    with mlflow.start_run() as run:
        uri = log_onnx(proto, METADATA)
        register(uri, NAME, run.info.run_id, {"k": "v"}, "always")
    return uri


def test_the_registered_model_loads_both_ways_and_predicts_batches(
    registered: str, model: torch.nn.Module
) -> None:
    uri = f"models:/{NAME}@champion"
    session = open_session(mlflow.onnx.load_model(uri))
    pyfunc = mlflow.pyfunc.load_model(uri)
    for count in (1, 3):
        frames = torch.stack(clips(count))
        expected = run_eager(model, frames, RESIZE, CROP)
        np.testing.assert_allclose(run_onnx(session, frames), expected, atol=5e-5)
        outputs = pyfunc.predict(frames.numpy())["probabilities"]
        np.testing.assert_allclose(outputs, expected, atol=5e-5)
        assert outputs.dtype == np.float32
    assert load_registered("auto", NAME).class_names == CLASSES


def test_never_promotes_only_where_there_is_no_champion(
    registered: str, store: str, proto: onnx.ModelProto
) -> None:
    client = MlflowClient()
    with mlflow.start_run() as run:
        uri = log_onnx(proto, METADATA)
        second, promoted = register(uri, NAME, run.info.run_id, {}, "never")
    assert not promoted
    assert client.get_model_version_by_alias(NAME, "champion").version == 1
    assert client.get_model_version_by_alias(NAME, "challenger").version == second.version
    with mlflow.start_run() as run:
        assert register(uri, "another", run.info.run_id, {}, "never")[1]


def test_predicting_without_a_registered_model_says_how_to_get_one(store: str) -> None:
    with pytest.raises(UserError, match=r"^model_uri: models:/nothing@champion .*-e main"):
        load_registered("auto", "nothing")
