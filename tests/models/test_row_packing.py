"""R(2+1)D on packed frames is the same function."""

import copy

import pytest
import torch
from torch import nn

from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.row_packing import RowPackedStem, pack_rows
from tests.helpers.export import build


def trained(model: nn.Module) -> nn.Module:
    """Give BatchNorm statistics, scales and biases as after training."""
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
def test_every_frame_is_computed_as_without_packing(shape: tuple[int, ...]) -> None:
    model = trained(build()).double()
    packed = pack_rows(model)
    assert isinstance(packed.stem, RowPackedStem)
    clips = torch.randn(shape, dtype=torch.float64)
    expected = model.layer1(model.stem(clips))  # type: ignore[operator]
    torch.testing.assert_close(packed.layer1(packed.stem(clips)), expected)  # type: ignore[operator]
    assert expected.max() > 1
    torch.testing.assert_close(packed(clips), model(clips))  # channels come in whole blocks


def test_the_model_itself_stays_as_it_is() -> None:
    model = build()
    before = copy.deepcopy(model.state_dict())
    pack_rows(model)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_the_architecture_table_has_it_for_r2plus1d_only() -> None:
    hooks = {name: a.optimize_for_export for name, a in ARCHITECTURES.items()}
    optimize = hooks.pop("r2plus1d_18")
    assert optimize is not None
    assert isinstance(optimize(build()).stem, RowPackedStem)
    assert set(hooks.values()) == {None}


def test_any_other_model_is_returned_as_it_is() -> None:
    model = build("r3d_18")
    assert pack_rows(model) is model
