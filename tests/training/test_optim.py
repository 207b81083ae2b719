"""Optimizer groups, learning rate schedules and averaging against their definitions."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from k400tiny_lib.config import Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.optim import (
    amp_dtype,
    lr_factor,
    make_average,
    make_optimizer,
    make_scheduler,
    peak_lr,
)


def rates(updates_per_epoch: int, **config: Any) -> list[float]:
    settings = Config(lr=1.0, **config)
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    scheduler = make_scheduler(optimizer, settings, updates_per_epoch)
    rates = []
    for _ in range(settings.num_epochs * updates_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_biases_and_norms_have_no_weight_decay() -> None:
    model = build_model("r2plus1d_18", 3)
    optimizer = make_optimizer(model, Config(weight_decay=0.1))
    by_id = {
        id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]
    }
    assert len(by_id) == len(list(model.parameters()))
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            plain = isinstance(module, nn.BatchNorm3d) or name == "bias"
            assert by_id[id(parameter)] == (0.0 if plain else 0.1)


def test_warm_up_is_linear_and_ends_at_the_peak() -> None:
    values = rates(5, num_epochs=10, warmup_epochs=2.0, scheduler="constant")
    assert values[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert values[10:] == pytest.approx([1.0] * 40)


def test_cosine_follows_its_formula() -> None:
    values = rates(4, num_epochs=10, warmup_epochs=0.0, scheduler="cosine")
    assert values == pytest.approx([(1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)])


def test_step_divides_by_ten_where_torchvisions_recipe_does() -> None:
    values = rates(1, num_epochs=45, warmup_epochs=10.0, scheduler="step")
    for epoch, rate in ((10, 1.0), (19, 1.0), (20, 0.1), (29, 0.1), (30, 0.01), (40, 0.001)):
        assert values[epoch] == pytest.approx(rate)


def test_exponential_ends_near_a_hundredth() -> None:
    values = rates(4, num_epochs=10, warmup_epochs=0.0, scheduler="exponential")
    ratios = [b / a for a, b in itertools.pairwise(values)]
    assert ratios == pytest.approx([ratios[0]] * len(ratios))
    assert values[-1] * ratios[0] == pytest.approx(0.01)


def torch_scheduler(optimizer: Optimizer, config: Config, updates_per_epoch: int) -> LRScheduler:
    """The same schedules, composed of PyTorch's."""
    total = config.num_epochs * updates_per_epoch
    warmup = min(round(config.warmup_epochs * updates_per_epoch), total - 1)
    rest = total - warmup
    milestones = [round(share / 45 * total) - warmup for share in (20, 30, 40)]
    main: LRScheduler = {
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, rest),
        "step": lambda: lr_scheduler.MultiStepLR(optimizer, milestones),
        "exponential": lambda: lr_scheduler.ExponentialLR(optimizer, 0.01 ** (1 / rest)),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0, 0),
    }[config.scheduler]()
    if not warmup:
        return main
    linear = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [linear, main], [warmup])


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.3, 2.5])
@pytest.mark.parametrize("updates_per_epoch", [1, 7, 49])
@pytest.mark.parametrize("scheduler", ["cosine", "step", "exponential", "constant"])
def test_schedules_agree_with_those_of_pytorch(
    scheduler: str, updates_per_epoch: int, warmup_epochs: float
) -> None:
    settings = Config(lr=1.0, num_epochs=9, scheduler=scheduler, warmup_epochs=warmup_epochs)
    optimizer = make_optimizer(nn.Linear(2, 2), settings)
    reference = torch_scheduler(optimizer, settings, updates_per_epoch)
    for update in range(9 * updates_per_epoch):
        rate = lr_factor(update / updates_per_epoch, settings, updates_per_epoch)
        # PyTorch's multiply from update to update.
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        reference.step()


@pytest.mark.parametrize("scheduler", ["cosine", "step", "exponential", "constant"])
def test_after_the_warm_up_only_the_position_in_epochs_counts(scheduler: str) -> None:
    settings = Config(num_epochs=9, scheduler=scheduler, warmup_epochs=2.0)
    for position in range(2, 10):
        factors = [lr_factor(position, settings, updates) for updates in (1, 4, 1000)]
        assert factors == pytest.approx([factors[0]] * 3)


def test_average_follows_the_formula_for_weights_and_statistics() -> None:
    model = nn.BatchNorm1d(2)
    average = make_average(model, 0.9)
    assert average is not None
    average.update_parameters(model)  # the first update copies
    with torch.no_grad():
        model.weight.fill_(3.0)
        model.running_mean.fill_(5.0)  # type: ignore[union-attr, operator]
    average.update_parameters(model)
    torch.testing.assert_close(average.module.weight, torch.full((2,), 0.9 * 1 + 0.1 * 3))
    torch.testing.assert_close(average.module.running_mean, torch.full((2,), 0.1 * 5.0))
    assert make_average(model, 0.0) is None


@pytest.mark.parametrize(
    ("instructions", "multiplies_bf16"),
    [({"amx_bf16"}, True), ({"avx512_bf16"}, True), ({"avx512_f", "avx2"}, False), (set(), False)],
)
def test_mixed_precision_is_on_where_the_cpu_gains_from_it(
    instructions: set[str], multiplies_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    can = dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)
    cpu = torch.device("cpu")
    r2plus1d = to_fast_layout(build_model("r2plus1d_18", 3), cpu, "auto")
    r3d = to_fast_layout(build_model("r3d_18", 3), cpu, "auto")
    stock = to_fast_layout(build_model("r2plus1d_18", 3), cpu, False)
    assert amp_dtype("auto", r2plus1d, cpu) is (torch.bfloat16 if multiplies_bf16 else None)
    assert amp_dtype("auto", r3d, cpu) is None
    assert amp_dtype("auto", stock, cpu) is None
    depthwise = to_fast_layout(build_model("tsn_efficientnet_lite0", 3), cpu, "auto")
    assert amp_dtype("auto", depthwise, cpu) is None
    assert amp_dtype("bf16", depthwise, cpu) is torch.bfloat16
    stem = depthwise.get_parameter("backbone.conv_stem.weight")
    assert stem.is_contiguous(memory_format=torch.channels_last)
    assert amp_dtype("off", r2plus1d, cpu) is None
    in_2d = to_fast_layout(build_model("r2plus1d_18", 3), cpu, True)
    assert amp_dtype("bf16", in_2d, cpu) is torch.bfloat16
    for in_3d in (r3d, stock):
        with pytest.raises(UserError, match="wrong gradients in 3D convolutions"):
            amp_dtype("bf16", in_3d, cpu)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulated", "scale"),
    [(24, 64, 1, 1.0), (24, 1, 1, 1 / 64), (12, 4, 2, 1 / 16), (48, 64, 1, 2.0)],
)
def test_the_rate_grows_linearly_with_the_clips_of_an_update(
    batch_size: int, world_size: int, accumulated: int, scale: float
) -> None:
    config = Config(
        lr=0.64, lr_batch_size=1536, batch_size=batch_size, grad_accum_steps=accumulated
    )
    assert peak_lr(config, world_size) == pytest.approx(0.64 * scale)
    optimizer = make_optimizer(nn.Linear(2, 2), config, world_size)
    assert {group["lr"] for group in optimizer.param_groups} == {peak_lr(config, world_size)}
    assert peak_lr(Config(lr=0.3, batch_size=batch_size), world_size) == 0.3
