"""Smaller variants: the same inputs and outputs, kept only where they are worth it."""

import numpy as np
import onnx
import pytest
import torch

from k400tiny_lib.export.onnx_graph import frames_free
from k400tiny_lib.export.parity import open_session, run_onnx
from k400tiny_lib.export.variants import compare_variants, make_variant, time_in_turns
from k400tiny_lib.system import cpu_name
from tests.helpers.export import clips


@pytest.fixture(scope="module")
def made(exported_plain: bytes) -> dict[str, bytes]:
    """The variants of the graph by name, serialized, for a test to change its copy."""
    proto = onnx.load_from_string(exported_plain)
    variants = {name: make_variant(name, proto, clips(4)) for name in ("int8", "fp16")}
    assert proto.SerializeToString() == exported_plain
    return {name: variant.SerializeToString() for name, variant in variants.items()}


@pytest.mark.parametrize(
    ("name", "size", "tolerance"), [("int8", 0.27, 0.02), ("fp16", 0.52, 1e-3)]
)
def test_a_variant_is_smaller_and_close_on_any_batch_and_size(
    exported_plain: bytes, made: dict[str, bytes], name: str, size: float, tolerance: float
) -> None:
    """int8 moves activations by a 256th of their range, fp16 by a 2048th of themselves."""
    proto = onnx.load_from_string(exported_plain)
    variant = onnx.load_from_string(made[name])
    assert variant.ByteSize() < size * proto.ByteSize()
    assert (variant.graph.input[0], variant.graph.output[0].type.tensor_type.elem_type) == (
        proto.graph.input[0],
        onnx.TensorProto.FLOAT,
    )
    assert frames_free(variant)
    full, small = open_session(proto), open_session(variant)
    for frames in (clips(2), clips(1, 129, 57), clips(1, frames=7)):
        batch = torch.stack(frames)
        actual, expected = run_onnx(small, batch), run_onnx(full, batch)
        np.testing.assert_allclose(actual, expected, atol=tolerance)
        assert not np.array_equal(actual, expected)


def test_int8_convolves_with_signed_weights_by_channel(
    exported_plain: bytes, made: dict[str, bytes]
) -> None:
    proto = onnx.load_from_string(exported_plain)
    nodes = onnx.load_from_string(made["int8"]).graph.node
    kinds = [node.op_type for node in nodes]
    assert kinds.count("Conv") == sum(n.op_type == "Conv" for n in proto.graph.node)
    assert "DequantizeLinear" in kinds
    assert not {"ConvInteger", "QLinearConv", "DynamicQuantizeLinear"} & set(kinds)


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
def test_int8_does_not_return_to_float32_for_an_activation(activation: str) -> None:
    helper, weights = onnx.helper, np.ones((3, 3, 3, 3), np.float32)
    constants = {"shape": np.array([-1, 3, 4, 4]), "w": weights, "low": 0.0, "high": 6.0}
    limits = ["low", "high"] if activation == "Clip" else []
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Round", ["float"], ["rounded"], "round"),
        helper.make_node("Reshape", ["rounded", "shape"], ["images"], "reshape"),
        helper.make_node("Conv", ["images", "w"], ["y"], "conv"),
        helper.make_node(activation, ["y", *limits], ["z"], "activation"),
        helper.make_node("Conv", ["z", "w"], ["probabilities"], "last", pads=[1, 1, 1, 1]),
    ]
    frames = helper.make_tensor_value_info("frames", onnx.TensorProto.UINT8, ["N", "T", 4, 4, 3])
    output = helper.make_tensor_value_info("probabilities", onnx.TensorProto.FLOAT, None)
    initializers = [
        onnx.numpy_helper.from_array(
            np.asarray(value, np.int64 if name == "shape" else np.float32), name
        )
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, "g", [frames], [output], initializers)
    opsets = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    made = make_variant("int8", proto, clips(1, 4, 4)).graph.node
    # The range of whole numbers does what the activation did.
    assert activation not in {node.op_type for node in made}


@pytest.mark.parametrize("name", ["int8", "fp16"])
def test_a_variant_resizes_in_float32(
    exported_plain: bytes, made: dict[str, bytes], name: str
) -> None:
    """Half precision would round the weights of resizing, int8 the gray levels."""
    graphs = [onnx.load_from_string(content) for content in (exported_plain, made[name])]
    rounded = []
    for proto in graphs:
        [node] = [node for node in proto.graph.node if node.op_type == "Round"]
        proto.graph.output.append(
            onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
        )
        frames = torch.stack(clips(1, 97, 131)).numpy()
        rounded.append(open_session(proto).run([node.output[0]], {"frames": frames})[0])
    np.testing.assert_array_equal(*rounded)
    assert {node.op_type for node in graphs[1].graph.node} >= {"MatMul", "Round"}
    assert graphs[1].ir_version == graphs[0].ir_version == 8


@pytest.mark.parametrize(
    ("acc1", "seconds", "kept", "reason"),
    [
        (80.0, (0.5, 0.6, 0.5, 0.6), True, "+0.00 points"),
        (80.001, (0.5, 0.6, 0.5, 0.6), True, "+0.00 points"),
        (79.999, (0.5, 0.6, 0.5, 0.6), True, "+0.00 points"),
        (79.0, (0.5, 0.6, 0.5, 0.6), True, "-1.00 points and 1.8"),
        (90.0, (0.5, 0.6, 0.5, 0.6), True, "+10.00 points"),
        (78.9, (0.5, 0.6, 0.5, 0.6), False, "loses more than max_accuracy_drop=1"),
        (80.0, (1.1, 1.1, 1.1, 1.1), False, "not faster here"),
        (80.0, (0.9, 1.1, 0.9, 1.1), False, "not faster here"),  # as often as not
    ],
)
def test_a_variant_is_kept_if_it_loses_little_and_is_faster_in_turns(
    acc1: float, seconds: tuple[float, ...], kept: bool, reason: str
) -> None:
    timings = {"float32": (1, 1, 1, 1), "int8": seconds}
    sizes = {"float32": 4_000_000, "int8": 1_000_000}
    full, small = compare_variants({"float32": 80.0, "int8": acc1}, sizes, timings, timings, 1.0)
    assert (full.kept, small.kept) == (not kept, kept)
    assert reason in small.reason
    assert (small.size_mb, small.test_acc1) == (1.0, acc1)
    assert (full.measured_on, small.measured_on) == (cpu_name(), cpu_name())
    assert small.latency_p50_ms == pytest.approx(1000 * np.median(seconds))


def test_turns_give_every_session_the_same_number_of_rounds(exported: bytes) -> None:
    session = open_session(onnx.load_from_string(exported))
    seconds = time_in_turns({"a": session, "b": session}, clips(1)[0][None].numpy(), 10)
    assert len(seconds["a"]) == len(seconds["b"]) == 10
    assert min(seconds["a"] + seconds["b"]) > 0
