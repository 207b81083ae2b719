"""Every form of the model that a GPU computes, against float64 on the CPU."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.models.video import r2plus1d_18

from k400tiny_lib.distributed.process import process_group
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.conv2d import SpatialConv, to_fast_layout
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.optim import amp_dtype

pytestmark = pytest.mark.gpu

CLIPS, CLASSES, SIZE = 4, 5, (4, 32, 32)


def batch() -> tuple[Tensor, Tensor]:
    """Clips of noise and their targets."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(CLIPS, 3, *SIZE, generator=generator), torch.arange(CLIPS) % CLASSES


def gradients(
    model: nn.Module, device: torch.device, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """The gradients of one batch, float64 on the CPU, by the names of the weights; and the loss."""
    clips, targets = batch()
    weights = dict(model.named_parameters())
    clips = clips.to(device, next(iter(weights.values())).dtype)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        loss = cross_entropy(model.train()(clips), targets.to(device))
    loss.backward()
    found = {name.removeprefix("module."): weight.grad for name, weight in weights.items()}
    return {name: grad.double().cpu() for name, grad in found.items() if grad is not None} | {
        "loss": loss.detach().double().cpu()
    }


def slim(model: Any) -> nn.Module:
    """A block of each kind, and smooth: BatchNorms enlarge rounding, and a ReLU may flip by it."""
    model.layer1, model.layer2 = model.layer1[:1], model.layer2[:1]
    model.layer3, model.layer4 = nn.Identity(), nn.Identity()
    model.fc = nn.Linear(128, CLASSES)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.SiLU())
    return model  # type: ignore[no-any-return]


@cache
def reference() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """torchvision's own model in float64 on the CPU: its weights and its gradients."""
    torch.manual_seed(0)
    model = slim(r2plus1d_18(weights=None, num_classes=CLASSES)).double()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return weights, gradients(model, torch.device("cpu"))


def error(found: dict[str, Tensor]) -> float:
    """The distance of all gradients from the reference's, as a share of their length."""
    expected = reference()[1]
    assert found.keys() == expected.keys()
    names = [name for name in expected if name != "loss"]
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in names])
    value = float(difference.norm() / torch.cat([expected[n].flatten() for n in names]).norm())
    print(f"error {value:.2e}")
    return value


def ours(device: torch.device, channels_last: Any = False) -> nn.Module:
    """The model of the library with the reference's weights, in float32 on a device."""
    model = slim(build_model("r2plus1d_18", CLASSES))
    model.load_state_dict(reference()[0])
    return to_fast_layout(model, device, channels_last)


def test_float32_has_the_gradients_of_the_cpu(device: torch.device) -> None:
    distance = error(gradients(ours(device), device))
    assert distance < 1e-4


def test_channels_last_memory_and_2d_convolutions_change_only_the_rounding(
    device: torch.device,
) -> None:
    model = ours(device, channels_last=True)
    assert any(isinstance(module, SpatialConv) for module in model.modules())
    distance = error(gradients(model, device))
    assert distance < 1e-4


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_mixed_precision_has_nearly_the_gradients_of_float64(
    device: torch.device, dtype: torch.dtype, limit: float, channels_last: bool
) -> None:
    if device.type == "cpu" and not channels_last:
        pytest.skip("oneDNN computes wrong bf16 gradients for 3D convolutions over few frames")
    distance = error(gradients(ours(device, channels_last), device, dtype))
    assert distance < limit


@pytest.mark.parametrize(("dtype", "limit"), [(None, 1e-4), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_compiled_model_has_the_gradients_of_an_eager_one(
    device: torch.device, dtype: torch.dtype | None, limit: float, channels_last: bool
) -> None:
    if device.type == "cpu" and dtype is not None and not channels_last:
        pytest.skip("oneDNN computes wrong bf16 gradients for 3D convolutions over few frames")
    torch.compiler.reset()
    model = ours(device, channels_last)
    model.compile()
    distance = error(gradients(model, device, dtype))
    assert distance < limit


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.usefixtures("alone_in_torchrun")
def test_one_process_of_nccl_with_sync_bn_has_the_gradients_of_none(
    device: torch.device, channels_last: bool
) -> None:
    with process_group() as process:
        model = ours(process.device, channels_last)
        on_gpu = process.device.type == "cuda"
        if on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        wrapped = DistributedDataParallel(model, [process.device] if on_gpu else None)
        distance = error(gradients(wrapped, process.device))
    assert distance < 1e-4


def test_auto_is_bf16_and_channels_last_on_a_gpu(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        pytest.skip("a GPU with matrix instructions for bf16")
    for name in ARCHITECTURES:
        assert amp_dtype("auto", name, device) is torch.bfloat16
    assert any(isinstance(m, SpatialConv) for m in ours(device, "auto").modules())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_predicts_as_on_the_cpu_and_trains_in_bf16(
    device: torch.device, name: str
) -> None:
    if name in ("x3d_s", "slow_r50"):
        pytest.importorskip("pytorchvideo.models.hub")
    torch.manual_seed(0)
    model = build_model(name, CLASSES).eval()
    design = ARCHITECTURES[name]
    clips = torch.randn(2, 3, max(design.min_clip_len, 4), *(2 * [max(design.min_crop_size, 64)]))
    with torch.no_grad():
        expected = model(clips)
        # As a GPU computes it by default; a CPU's 3D convolutions are wrong in bf16 (see above).
        model = to_fast_layout(model, device, channels_last=True)
        found = model(clips.to(device)).cpu()
    assert (found - expected).norm() / expected.norm() < 1e-3
    with torch.autocast(device.type, dtype=torch.bfloat16):
        loss = cross_entropy(model.train()(clips.to(device)), torch.tensor([0, 1], device=device))
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
