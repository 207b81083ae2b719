"""Convolutions of a graph become 2D where they can, and compute the same."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from k400tiny_lib.export.rewrite_conv2d import convolve_in_2d

SPATIAL = [
    {"kernel": (1, 3, 3), "pads": [0, 1, 1, 0, 1, 1]},
    {"kernel": (1, 7, 5), "pads": [0, 3, 0, 0, 2, 1], "strides": [1, 2, 1]},
    {"kernel": (1, 3, 3), "dilations": [1, 2, 1], "group": 2, "bias": False},
]
TEMPORAL = [
    {"kernel": (3, 1, 1), "pads": [1, 0, 0, 1, 0, 0]},
    {"kernel": (2, 1, 1), "pads": [2, 0, 0, 0, 0, 0], "strides": [2, 1, 1], "group": 2},
    {"kernel": (3, 1, 1), "dilations": [2, 1, 1], "bias": False},
]
LEFT = [
    {"kernel": (3, 3, 3)},
    {"kernel": (1, 1, 1), "strides": [2, 2, 2]},
    {"kernel": (1, 3, 3), "strides": [2, 1, 1]},
    {"kernel": (1, 3, 3), "pads": [1, 0, 0, 1, 0, 0]},
    {"kernel": (3, 1, 1), "strides": [1, 2, 2]},
    {"kernel": (3, 1, 1), "pads": [0, 0, 1, 0, 0, 0]},
    {"kernel": (1, 3, 3), "auto_pad": "SAME_UPPER"},
    {"kernel": (1, 3, 3), "height": "H"},
]


def one_convolution(
    *,
    kernel: tuple[int, ...],
    relu: bool,
    bias: bool = True,
    group: int = 1,
    height: int | str = 9,
    **attributes: Any,
) -> onnx.ModelProto:
    """A graph of x (N, 4, T, H, 8), N and T free, with one convolution to 6 channels."""
    rng = np.random.default_rng(0)
    constants = {"w": rng.standard_normal((6, 4 // group, *kernel), np.float32)}
    constants |= {"b": rng.standard_normal(6, np.float32)} if bias else {}
    nodes = [helper.make_node("Conv", ["x", *constants], ["c"], group=group, **attributes)]
    nodes.append(helper.make_node("Relu" if relu else "Abs", ["c"], ["y"]))
    sizes = ["N", 4, "T", height, 8]
    graph = helper.make_graph(
        nodes,
        "one convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    return onnx.shape_inference.infer_shapes(proto)


def run(proto: onnx.ModelProto, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    output: np.ndarray[Any, Any] = session.run(None, {"x": x})[0]
    return output


def ranks(proto: onnx.ModelProto) -> list[int]:
    """The number of axes of each convolution's weight."""
    weights = {initializer.name: initializer for initializer in proto.graph.initializer}
    return [len(weights[n.input[1]].dims) for n in proto.graph.node if n.op_type == "Conv"]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("case", SPATIAL + TEMPORAL + LEFT, ids=str)
def test_the_same_function_in_2d(case: dict[str, Any], relu: bool) -> None:
    proto = one_convolution(relu=relu, **case)
    made = convolve_in_2d(proto)
    onnx.checker.check_model(made, full_check=True)
    assert ranks(made) == [5 if case in LEFT else 4]
    kinds = [node.op_type for node in made.graph.node]
    assert not relu or kinds[kinds.index("Conv") + 1] == "Relu"  # computed together
    for count, steps in ((1, 5), (3, 8)):
        x = np.random.default_rng(1).standard_normal((count, 4, steps, 9, 8), np.float32)
        np.testing.assert_allclose(run(made, x), run(proto, x), atol=2e-5)  # sums of up to 140


def test_no_convolution_of_r2plus1d_stays_3d_but_those_of_single_pixels(
    exported_plain: bytes,
) -> None:
    proto = onnx.load_from_string(exported_plain)
    weights = {initializer.name: initializer.dims for initializer in proto.graph.initializer}
    shapes = [weights[n.input[1]] for n in proto.graph.node if n.op_type == "Conv"]
    assert len(shapes) == 37
    assert {tuple(shape[2:]) for shape in shapes if len(shape) == 5} == {(1, 1, 1)}
