"""Convolutions in 2D: torchvision's outputs, gradients and state_dict keys, in every layout."""

from pathlib import Path

import pytest
import torch
from torchvision.models.video import r2plus1d_18

from k400tiny_lib.models.conv2d import SpatialConv, TemporalConv, decompose_conv3d, to_fast_layout
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.worker import make_train_state
from tests.helpers.training import CPU, annotate, config


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "form"),
    [
        ((1, 3, 3), (1, 2, 2), (0, 1, 1), 1, SpatialConv),
        ((1, 1, 1), (2, 2, 2), (0, 0, 0), 1, SpatialConv),
        ((1, 3, 5), (1, 1, 2), (0, 1, 0), 2, SpatialConv),
        ((3, 1, 1), (2, 1, 1), (1, 0, 0), 1, TemporalConv),
        ((5, 1, 1), (1, 1, 1), (2, 0, 0), 4, TemporalConv),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1), 1, torch.nn.Conv3d),
        ((3, 1, 1), (1, 2, 2), (1, 0, 0), 1, torch.nn.Conv3d),
        ((1, 3, 3), (1, 1, 1), (1, 1, 1), 1, torch.nn.Conv3d),
    ],
)
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last_3d])
def test_a_convolution_in_2d_is_pytorchs_in_3d(
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    groups: int,
    form: type,
    memory: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    theirs = torch.nn.Conv3d(4, 8, kernel, stride, padding, groups=groups)
    ours = torch.nn.Conv3d(4, 8, kernel, stride, padding, groups=groups)
    ours.load_state_dict(theirs.state_dict())
    decompose_conv3d(ours).to(memory_format=memory)
    assert type(ours) is form
    clips = torch.randn(2, 4, 5, 9, 10).to(memory_format=memory)
    convolved, expected = ours(clips), theirs(clips)
    torch.testing.assert_close(convolved, expected)
    convolved.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
    if form is not torch.nn.Conv3d and memory is torch.channels_last_3d:
        assert convolved.is_contiguous(memory_format=memory)  # the next one reads it as a view


def test_the_fast_form_is_torchvisions_model_in_outputs_gradients_and_names() -> None:
    torch.manual_seed(0)
    # Double precision: 37 BatchNorms over few values would pass float32's rounding on enlarged.
    theirs = r2plus1d_18(weights=None, num_classes=5).double()
    ours = build_model("r2plus1d_18", 5).double()
    ours.load_state_dict(theirs.state_dict())
    ours = to_fast_layout(ours, torch.device("cpu"), channels_last=True)
    forms = {type(m) for m in ours.modules() if isinstance(m, torch.nn.Conv3d)}
    assert forms == {SpatialConv, TemporalConv}
    clips, targets = torch.randn(3, 3, 8, 32, 32, dtype=torch.float64), torch.tensor([0, 1, 2])
    logits, expected = ours(clips), theirs(clips)
    torch.testing.assert_close(logits, expected, rtol=1e-7, atol=1e-9)
    for outputs in (logits, expected):
        torch.nn.functional.cross_entropy(outputs, targets).backward()
    gradients = dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(gradients[name].grad, parameter.grad, rtol=1e-5, atol=1e-8)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())


@pytest.mark.parametrize("instruction", ["amx_bf16", "avx512_bf16", "avx2"])
def test_a_cpu_gets_torchvisions_own_form_unless_another_is_faster(
    instruction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {instruction: True})
    model = to_fast_layout(build_model("r2plus1d_18", 3), torch.device("cpu"), "auto")
    forms = {type(m) for m in model.modules() if isinstance(m, torch.nn.Conv3d)}
    multiplies_bf16 = instruction != "avx2"
    assert forms == ({SpatialConv, TemporalConv} if multiplies_bf16 else {torch.nn.Conv3d})


def test_checkpoints_have_torchvisions_names_whatever_the_form(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(self))
    resolved = config(tiny_data[0], tmp_path, compile=True, channels_last=True, ema_decay=0.5)
    annotations = annotate(tiny_data[0])
    annotations.splits["train"][4:] = []
    state = make_train_state(resolved, annotations, CPU)
    assert compiled == [state.forward]
    fit(state, lambda *_: None)
    stock = r2plus1d_18(weights=None, num_classes=3)
    for model in (state.model, state.evaluated_model):
        stock.load_state_dict(model.state_dict())
