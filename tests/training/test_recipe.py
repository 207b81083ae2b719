"""Parameters of a recipe in the loop, each against a reference or a law, on a small network."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.frozen import freeze
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training import optim
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.state import TrainState, gather_state, load_state
from k400tiny_lib.training.worker import BuildModel, make_train_state
from tests.helpers.training import CPU, Small, annotate, build_small, config


def state_for(
    data_path: Path, folder: Path, build: BuildModel = build_small, **changes: Any
) -> TrainState:
    plain = {
        "augmentation": "none",
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "scheduler": "constant",
        "num_epochs": 1,
    }
    settings = config(data_path, folder, **(plain | changes))
    return make_train_state(settings, annotate(data_path), CPU, build=build)


def weights(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def trained(state: TrainState) -> dict[str, Tensor]:
    fit(state, lambda *_: None)
    return weights(state)


def test_accumulated_batches_make_the_update_of_one_large_batch(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    class FixedStatistics(Small):
        """BatchNorm would take the statistics of a batch, whatever is accumulated."""

        def train(self, mode: bool = True) -> "FixedStatistics":
            return super().train(False)

    def build(config: Config, num_classes: int) -> nn.Module:
        return FixedStatistics(num_classes)

    once = trained(state_for(tiny_data[0], tmp_path, build, batch_size=6))
    parts = trained(state_for(tiny_data[0], tmp_path, build, batch_size=2, grad_accum_steps=3))
    start = weights(state_for(tiny_data[0], tmp_path))
    assert not torch.equal(start["conv.weight"], once["conv.weight"])
    for name, value in once.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)  # order of sums


def test_an_update_is_no_longer_than_the_clipped_gradient(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    def step(clip_grad_norm: float) -> float:
        state = state_for(
            tiny_data[0], tmp_path, batch_size=19, lr=1.0, clip_grad_norm=clip_grad_norm
        )
        assert len(state.train_loader) == 1
        before, after = weights(state), trained(state)
        moved = [after[n] - before[n] for n, _ in state.model.named_parameters()]
        return float(torch.cat([part.flatten() for part in moved]).norm())

    free = step(0.0)
    assert step(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert step(free * 2) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_full_precision_within_its_rounding(
    tiny_data: tuple[Path, Path], tmp_path: Path, amp: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The one 3D convolution of this network is computed right in bf16.
    monkeypatch.setattr(optim, "has_conv3d", lambda model: False)
    start = weights(state_for(tiny_data[0], tmp_path))
    full = trained(state_for(tiny_data[0], tmp_path, amp="off"))
    mixed = state_for(tiny_data[0], tmp_path, amp=amp)
    assert mixed.scaler.is_enabled() is (amp == "fp16")
    in_mixed = trained(mixed)
    moved, off = (
        torch.cat([(a[n] - b[n]).flatten() for n, _ in mixed.model.named_parameters()]).norm()
        for a, b in ((full, start), (in_mixed, full))
    )
    # bf16 rounds to 8 bits, a gradient is a sum of many such numbers.
    assert 0 < off < 0.05 * moved


def test_dropout_drops_its_share_before_the_head_and_scales_the_rest() -> None:
    model: Any = build_model("r2plus1d_18", 3, dropout=0.25)
    seen: list[Tensor] = []
    model.fc.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    clips = torch.rand(8, 3, 4, 32, 32)
    with torch.no_grad():
        model.eval()(clips)
        for module in model.modules():  # all else stays as it is
            module.training = isinstance(module, nn.Dropout)
        model(clips)
    plain, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], plain[kept] / 0.75)
    assert float(kept[plain != 0].float().mean()) == pytest.approx(0.75, abs=0.05)  # of 3000


def test_training_stops_out_of_patience_and_resuming_does_not_go_on(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    def epochs(accuracies: list[float], patience: int) -> int:
        settings: dict[str, Any] = {"num_epochs": len(accuracies), "patience": patience}
        state = state_for(tiny_data[0], tmp_path, **settings)
        while not state.finished:
            state.end_epoch(accuracies[state.epoch])
        resumed = state_for(tiny_data[0], tmp_path, **settings)
        load_state(resumed, gather_state(state), "resume")
        fit(resumed, lambda *_: pytest.fail("it went on"))
        return state.epoch

    assert epochs([10, 20, 20, 20, 90], patience=2) == 4  # an equal epoch is no better one
    assert epochs([10, 20, 20, 21, 5, 5], patience=2) == 6
    assert epochs([50, 40, 30], patience=1) == 2
    assert epochs([50, 40, 30], patience=0) == 3


def test_a_frozen_backbone_stays_while_the_head_learns_and_thaws_afterwards(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    state = state_for(
        tiny_data[0],
        tmp_path,
        num_epochs=2,
        freeze_epochs=1,
        weight_decay=0.1,
        momentum=0.9,
        ema_decay=0.5,
    )
    states = [weights(state)]
    fit(state, lambda state, *_: states.append(weights(state)))
    head = {name for name in states[0] if name.startswith("fc.")}
    for name in states[0]:
        assert torch.equal(states[0][name], states[1][name]) is (name not in head), name
        assert not torch.equal(states[1][name], states[2][name]), name


@pytest.fixture
def one_process_group() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_wrapped_model_can_be_frozen_and_thawed(one_process_group: None) -> None:
    model = Small(3)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as in make_model
    for frozen in (True, True, False, False):
        freeze(model.train(), "head" if frozen else "all")
        wrapped(torch.rand(2, 3, 4, 8, 8)).sum().backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None}
        assert learning == {n for n, _ in model.named_parameters() if not frozen or "fc" in n}
        assert model.norm.training is not frozen
        model.zero_grad()


def test_there_is_nothing_to_freeze_without_weights_to_start_from() -> None:
    parameters = {"data_path": "frames", "annotations": "a.json", "freeze_epochs": "2"}
    with pytest.raises(UserError, match=r"^freeze_epochs: 2, but the backbone starts from scratch"):
        resolve("train", parameters)
    assert resolve("train", parameters | {"load_model": "best.pt"}).freeze_epochs == 2
