"""The exported graph equals evaluation in PyTorch; logged and registered, it still does."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from mlflow import MlflowClient

from k400tiny_lib.errors import UserError
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph, frames_free
from k400tiny_lib.export.parity import (
    ParityCase,
    compare_outputs,
    open_session,
    require_parity,
    run_eager,
    run_onnx,
)
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.registry.promotion import Promotion
from k400tiny_lib.registry.registry import log_onnx, register
from k400tiny_lib.serving.onnx_classifier import open_classifier
from k400tiny_lib.tracking.models import open_registered
from tests.conftest import LABELS, REPOSITORY
from tests.helpers.export import CLIP_LEN, GEOMETRY, METADATA, build, clips, disturb
from tests.helpers.serving import TinyNetwork, export_tiny

NAME = "test-model"
NO_CLIPS = ExportClips(None, Path("nowhere"), CLIP_LEN, 1)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return build()


@pytest.fixture
def proto(exported: bytes) -> onnx.ModelProto:
    return onnx.load_from_string(exported)  # a new copy each time: MLflow changes it


def test_batches_and_sizes_agree_with_the_eager_evaluation_path(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    eager = partial(run_eager, model, GEOMETRY)
    cases = compare_outputs(proto, eager, GEOMETRY, clips(5), True)
    names = {"batch 1", "batch 2", "batch 5", "336x336", "240x320", "128x128", "129x257"}
    assert {case.case for case in cases} == names | {"6 frames"}
    assert require_parity(cases, tolerance=1e-5) < 1e-5  # float32 on the same pixels


def test_a_sharp_network_is_not_blamed_for_a_pixel_that_is_rounded_apart() -> None:
    model, frames = build(), clips(5)
    common = np.log(run_eager(model, GEOMETRY, torch.stack(frames))).mean(0)
    with torch.no_grad():  # enlarge what differs between clips
        model.fc.weight *= 300
        model.fc.bias.sub_(torch.from_numpy(common)).mul_(300)
    proto = export_graph(FramesToProbabilities(model, GEOMETRY).eval(), 18, METADATA)
    eager = partial(run_eager, model, GEOMETRY)
    cases = compare_outputs(proto, eager, GEOMETRY, frames, True)
    assert any(case.pixels_off for case in cases)
    end_to_end = run_onnx(open_session(proto), torch.stack(frames)) - eager(torch.stack(frames))
    assert np.abs(end_to_end).max() > 1e-4
    assert require_parity(cases, tolerance=1e-4) < 1e-4


def test_other_pixels_than_those_of_evaluation_fail_the_gate(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    other = replace(GEOMETRY, antialias=not GEOMETRY.antialias)
    cases = compare_outputs(proto, partial(run_eager, model, other), other, clips(5), True)
    with pytest.raises(UserError, match=r"do not see the same pixels \(batch 1: \d+ of \d+ differ"):
        require_parity(cases, tolerance=1.0)


def test_frames_smaller_than_the_crop_are_enlarged_alike(
    proto: onnx.ModelProto, model: torch.nn.Module
) -> None:
    frames = torch.stack(clips(2, 20, 17))
    onnx_out = run_onnx(open_session(proto), frames)
    np.testing.assert_allclose(onnx_out, run_eager(model, GEOMETRY, frames), atol=5e-5)


def test_weights_disturbed_by_a_hundredth_fail_the_gate(proto: onnx.ModelProto) -> None:
    eager = partial(run_eager, disturb(build()), GEOMETRY)
    cases = compare_outputs(proto, eager, GEOMETRY, clips(5), True)
    with pytest.raises(UserError, match=r"^tolerance: .* differs by .* Nothing was registered"):
        require_parity(cases, tolerance=1e-4)


def test_a_network_of_fixed_length_has_a_graph_of_fixed_length(tmp_path: Path) -> None:
    """The other ones have a free T: see the metadata below."""
    proto = onnx.load(export_tiny(tmp_path / "tiny.onnx"))
    assert not frames_free(proto)
    assert proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value == CLIP_LEN
    model = open_classifier(tmp_path / "tiny.onnx")
    with pytest.raises(UserError, match=rf"^frames: .* Needed: uint8 of shape \(N, {CLIP_LEN}, H"):
        model.predict(torch.stack(clips(1, frames=CLIP_LEN + 2)).numpy())


def test_views_are_averaged_and_calibrated_inside_the_graph() -> None:
    """Against the eager path, which averages softmaxes and then scales them in float64."""
    model, views, temperature = build("r3d_18"), 2, 1.7
    module = FramesToProbabilities(model, GEOMETRY, views, temperature).eval()
    proto = export_graph(module, 18, METADATA)
    assert not frames_free(proto)
    session, videos = open_session(proto), clips(5, frames=views * CLIP_LEN)
    eager = partial(run_eager, model, GEOMETRY, views=views, temperature=temperature)
    require_parity(compare_outputs(proto, eager, GEOMETRY, videos, False), tolerance=5e-5)
    swapped = torch.stack([torch.cat([v[CLIP_LEN:], v[:CLIP_LEN]]) for v in videos])
    same = run_onnx(session, torch.stack(videos))
    np.testing.assert_allclose(run_onnx(session, swapped), same, atol=1e-5)


def test_a_difference_that_is_not_a_number_fails_the_gate() -> None:
    with pytest.raises(UserError, match="batch 2 differs by nan"):
        require_parity([ParityCase("batch 1", 0.0, True), ParityCase("batch 2", np.nan, True)], 1.0)


def test_the_file_does_not_say_where_it_was_made(exported: bytes) -> None:
    assert str(REPOSITORY).encode() not in exported


def test_the_file_says_what_a_user_must_know(proto: onnx.ModelProto) -> None:
    properties = {p.key: p.value for p in proto.metadata_props}
    assert properties["class_names"] == '["sliding", "growing", "turning"]'
    assert properties["frames_free"] == "true"
    assert properties["clip_len"] == "4"
    [frames] = proto.graph.input
    assert frames.name == "frames"
    assert axes_of(frames) == ["N", "T", "H", "W", 3]
    assert axes_of(proto.graph.output[0]) == ["N", 3]


def test_no_axis_has_a_name_of_the_exporter(proto: onnx.ModelProto) -> None:
    values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
    names = {axis for value in values for axis in axes_of(value) if isinstance(axis, str)}
    words = {word for name in names for word in re.findall(r"[A-Za-z_]\w*", name)}
    assert {"N", "T"} <= words <= {"N", "T", "H", "W", "Max", "Min"}


def axes_of(value: onnx.ValueInfoProto) -> list[int | str]:
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize(("opset", "ir_version"), [(18, 8), (20, 9), (22, 10), (23, 11)])
def test_the_file_asks_for_no_newer_a_runtime_than_its_opset(opset: int, ir_version: int) -> None:
    """The IR versions of onnx's own table of releases (docs/Versioning.md)."""
    module = FramesToProbabilities(TinyNetwork(), GEOMETRY).eval()
    proto = export_graph(module, opset, METADATA)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == ir_version
    frames = torch.stack(clips(2))
    expected = run_eager(module.model, GEOMETRY, frames)
    np.testing.assert_allclose(run_onnx(open_session(proto), frames), expected, atol=5e-5)


@pytest.fixture
def registered(store: str, proto: onnx.ModelProto) -> str:
    with mlflow.start_run():
        uri = log_onnx(proto, METADATA)
        register(uri, Promotion("always", NAME, NO_CLIPS), {"k": "v"})
    return uri


def test_the_registered_model_loads_both_ways_and_predicts_batches(
    registered: str, model: torch.nn.Module
) -> None:
    uri = f"models:/{NAME}@champion"
    session = open_session(mlflow.onnx.load_model(uri))
    pyfunc = mlflow.pyfunc.load_model(uri)
    for count in (1, 3):
        frames = torch.stack(clips(count))
        expected = run_eager(model, GEOMETRY, frames)
        np.testing.assert_allclose(run_onnx(session, frames), expected, atol=5e-5)
        outputs = pyfunc.predict(frames.numpy())["probabilities"]
        np.testing.assert_allclose(outputs, expected, atol=5e-5)
        assert outputs.dtype == np.float32
    assert open_registered("auto", NAME).class_names == list(LABELS)


def test_never_promotes_only_where_there_is_no_champion(
    registered: str, store: str, proto: onnx.ModelProto
) -> None:
    client = MlflowClient()
    with mlflow.start_run():
        uri = log_onnx(proto, METADATA)
        second, decision = register(uri, Promotion("never", NAME, NO_CLIPS), {})
        assert register(uri, Promotion("never", "another", NO_CLIPS), {})[1].promoted
    assert not decision.promoted
    assert client.get_model_version_by_alias(NAME, "champion").version == 1
    assert client.get_model_version_by_alias(NAME, "challenger").version == second.version


def test_predicting_without_a_registered_model_says_how_to_get_one(store: str) -> None:
    with pytest.raises(UserError, match=r"^model_uri: models:/nothing@champion: .*-e main"):
        open_registered("auto", "nothing")
