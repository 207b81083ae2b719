"""The beginning of R(2+1)D on sheets is the same function."""

import copy

import onnx
import pytest
import torch
from torch import nn

from k400tiny_lib.export.row_packing import SheetStem, on_sheets
from k400tiny_lib.models.weights import build_model
from tests.helpers.export import build


def seasoned(model: nn.Module) -> nn.Module:
    """With statistics, scales and biases of BatchNorm as training leaves them."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    return model


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 16, 16), (2, 3, 4, 32, 48), (3, 3, 5, 23, 18), (1, 3, 7, 30, 61)]
)
@torch.inference_mode()
def test_every_frame_comes_out_as_without_sheets(shape: tuple[int, ...]) -> None:
    model = seasoned(build()).double()
    twin = on_sheets(model)
    assert isinstance(twin.stem, SheetStem)
    clips = torch.randn(shape, dtype=torch.float64)
    expected = model.layer1(model.stem(clips))  # type: ignore[operator]
    torch.testing.assert_close(twin.layer1(twin.stem(clips)), expected)  # type: ignore[operator]
    assert expected.max() > 1
    torch.testing.assert_close(twin(clips), model(clips))  # channels come in whole blocks


def test_the_model_itself_stays_as_it_is() -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    on_sheets(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["r3d_18", "mc3_18", "s3d", "x3d_s"])
def test_other_architectures_have_none(architecture: str) -> None:
    model = build_model(architecture, 2).eval()
    assert on_sheets(model) is model


def test_only_the_graph_of_float32_has_them(
    exported: bytes, exported_without_sheets: bytes
) -> None:
    def dilated(serialised: bytes) -> int:
        nodes = onnx.load_from_string(serialised).graph.node
        dilations = [list(a.ints) for n in nodes for a in n.attribute if a.name == "dilations"]
        return sum(d[0] > 1 for d in dilations)

    # In the stem and in each pair of convolutions of the first stage.
    assert (dilated(exported), dilated(exported_without_sheets)) == (5, 0)
