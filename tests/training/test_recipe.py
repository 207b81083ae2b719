"""What a recipe asks of the loop: each wish against a reference or a law, on a small network."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from k400tiny_lib.config import resolve
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training import loop, worker
from k400tiny_lib.training.freezing import freeze_backbone
from k400tiny_lib.training.loop import Trainer, fit
from k400tiny_lib.training.worker import make_trainer
from tests.training.test_training import CPU, annotate, config


class Small(nn.Module):
    """A backbone with BatchNorm and a head, a thousandth of the real thing."""

    architecture = "r2plus1d_18"

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, 8, 3)
        self.norm = nn.BatchNorm3d(8)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = self.fc(F.relu(self.norm(self.conv(clips))).mean((2, 3, 4)))
        return logits


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, num_classes: int, dropout: float = 0.0) -> nn.Module:
        return Small(num_classes)

    monkeypatch.setattr(worker, "build_model", build)


def trainer_for(data_path: Path, folder: Path, **changes: Any) -> Trainer:
    plain = {
        "augmentation": "none",
        "optimizer": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "scheduler": "constant",
        "num_epochs": 1,
    }
    return make_trainer(config(data_path, folder, **(plain | changes)), annotate(data_path), CPU)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def trained(trainer: Trainer) -> dict[str, Tensor]:
    fit(trainer, lambda *_: None)
    return weights(trainer)


def test_accumulated_batches_make_the_update_of_one_large_batch(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # BatchNorm's statistics are those of a batch, whatever is accumulated.
    monkeypatch.setattr(Small, "train", lambda self, mode=True: nn.Module.train(self, False))
    once = trained(trainer_for(tiny_data[0], tmp_path, batch_size=6))
    parts = trained(trainer_for(tiny_data[0], tmp_path, batch_size=2, grad_accum_steps=3))
    start = weights(trainer_for(tiny_data[0], tmp_path))
    assert not torch.equal(start["conv.weight"], once["conv.weight"])
    for name, value in once.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-6)  # order of sums


def test_an_update_is_no_longer_than_the_clipped_gradient(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    def step(clip_grad_norm: float) -> float:
        trainer = trainer_for(
            tiny_data[0], tmp_path, batch_size=19, lr=1.0, clip_grad_norm=clip_grad_norm
        )
        assert len(trainer.train_loader) == 1
        before, after = weights(trainer), trained(trainer)
        moved = [after[n] - before[n] for n, _ in trainer.model.named_parameters()]
        return float(torch.cat([part.flatten() for part in moved]).norm())

    free = step(0.0)
    assert step(free / 2) == pytest.approx(free / 2, rel=1e-3)
    assert step(free * 2) == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_mixed_precision_follows_full_precision_within_its_rounding(
    tiny_data: tuple[Path, Path], tmp_path: Path, amp: str
) -> None:
    start = weights(trainer_for(tiny_data[0], tmp_path))
    full = trained(trainer_for(tiny_data[0], tmp_path, amp="off"))
    mixed = trainer_for(tiny_data[0], tmp_path, amp=amp)
    assert mixed.scaler.is_enabled() is (amp == "fp16")
    found = trained(mixed)
    moved, off = (
        torch.cat([(a[n] - b[n]).flatten() for n, _ in mixed.model.named_parameters()]).norm()
        for a, b in ((full, start), (found, full))
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
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def epochs(accuracies: list[float], patience: int, trainer: Trainer | None = None) -> int:
        trainer = trainer or trainer_for(
            tiny_data[0], tmp_path, num_epochs=len(accuracies), patience=patience
        )
        monkeypatch.setattr(loop, "train_epoch", lambda *_: {})
        monkeypatch.setattr(
            loop, "validate", lambda trainer: {"val_acc1": accuracies[trainer.epoch]}
        )
        fit(trainer, lambda *_: None)
        assert trainer.finished
        fit(trainer, lambda *_: pytest.fail("it went on"))
        return trainer.epoch

    assert epochs([10, 20, 20, 20, 90], patience=2) == 4  # an equal epoch is no better one
    assert epochs([10, 20, 20, 21, 5, 5], patience=2) == 6
    assert epochs([50, 40, 30], patience=1) == 2
    assert epochs([50, 40, 30], patience=0) == 3


def test_a_frozen_backbone_stays_while_the_head_learns_and_thaws_afterwards(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    trainer = trainer_for(
        tiny_data[0],
        tmp_path,
        num_epochs=2,
        freeze_epochs=1,
        weight_decay=0.1,
        momentum=0.9,
        ema_decay=0.5,
    )
    states = [weights(trainer)]
    fit(trainer, lambda trainer, *_: states.append(weights(trainer)))
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
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as in make_trainer
    for frozen in (True, True, False, False):
        freeze_backbone(model.train(), frozen)
        wrapped(torch.rand(2, 3, 4, 8, 8)).sum().backward()
        learning = {name for name, p in model.named_parameters() if p.grad is not None}
        assert learning == {n for n, _ in model.named_parameters() if not frozen or "fc" in n}
        assert model.norm.training is not frozen
        model.zero_grad()


def test_there_is_nothing_to_freeze_without_weights_to_start_from() -> None:
    given = {"data_path": "frames", "annotations": "a.json", "freeze_epochs": "2"}
    with pytest.raises(UserError, match=r"^freeze_epochs: 2, but the backbone starts from scratch"):
        resolve("train", given)
    assert resolve("train", given | {"load_model": "best.pt"}).freeze_epochs == 2
