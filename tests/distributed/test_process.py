"""One process and two follow the same losses; if one of them must stop, all do."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from k400tiny_lib.data.annotations import read_annotations
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.training.loop import fit
from k400tiny_lib.training.worker import make_train_state
from tests.helpers.training import (
    CPU,
    annotate,
    build_slim,
    build_small,
    config,
    make_job,
    run_group,
    run_spawned,
)

GLOBAL_BATCH = 4


def train(process: Process, folder: Path, data_path: Path, name: str) -> None:
    """Train with frozen BatchNorm statistics; save the loss of each update and the scores."""
    settings = config(
        data_path,
        folder,
        model="mc3_18",
        num_epochs=2,
        lr=1e-3,
        momentum=0.9,
        batch_size=GLOBAL_BATCH // process.world_size,
    )
    annotations = read_annotations(Path(settings.annotations))
    state = make_train_state(settings, annotations, process, build=build_slim)
    for module in state.model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
            module.training = False
    losses: list[float] = []
    scores: list[dict[str, float]] = []

    def note(*_: Any) -> None:
        losses.append(float(sum(sums[1] for sums in process.gather(state.meters.sums))))

    state.optimizer.register_step_post_hook(note)
    fit(state, lambda _, metrics, best: scores.append(metrics))
    if process.is_main:
        weights = state.model.state_dict()
        torch.save({"losses": losses, "scores": scores, "model": weights}, folder / name)


def train_alone_twice_and_in_two_processes(data_path: Path, folder: Path) -> None:
    train(CPU, folder, data_path, "one.pt")
    train(CPU, folder, data_path, "again.pt")
    run_group(2, train, folder, data_path, "two.pt")


@pytest.fixture(scope="module")
def trained(
    tiny_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The losses, scores and weights of three training runs."""
    folder = tmp_path_factory.mktemp("trained")
    make_job(config(tiny_data[0], folder), annotate(tiny_data[0], num_val=5))
    run_spawned(train_alone_twice_and_in_two_processes, tiny_data[0], folder)
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*.pt")}


def test_training_is_deterministic_to_the_bit(trained: dict[str, Any]) -> None:
    one, again = trained["one"], trained["again"]
    assert one["losses"] == again["losses"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, again["model"][name]), name


def test_two_processes_follow_the_losses_and_scores_of_one(trained: dict[str, Any]) -> None:
    one, two = trained["one"], trained["two"]
    # Sums in another order: float32 rounding, carried along by the updates.
    assert len(one["losses"]) == len(two["losses"]) > 4
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    for found, expected in zip(two["scores"], one["scores"], strict=True):
        for name in ("train_loss", "val_loss", "val_acc1"):
            # With a clip of the five counted twice the loss would be off by more.
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name


def break_on_rank_1(process: Process, folder: Path, data_path: Path) -> None:
    """Train with a model whose output on rank 1 is NaN from its third batch on."""
    settings = config(data_path, folder, batch_size=2, grad_accum_steps=2)
    annotations = read_annotations(Path(settings.annotations))
    state = make_train_state(settings, annotations, process, build=build_small)
    third = 2 * settings.batch_size
    order = list(state.train_loader.sampler)[third : third + settings.batch_size]
    names = process.gather([annotations.splits["train"][i].video for i in order])[1]

    def poison(model: nn.Module, inputs: Any, logits: Tensor) -> Tensor | None:
        return logits * math.nan if process.rank == 1 and state.batch == 2 else None

    state.model.register_forward_hook(poison)
    with pytest.raises(UserError) as caught:
        fit(state, lambda *_: None)
    assert f"nan in epoch 1, batch 3, of the clips {', '.join(names)}. " in str(caught.value)
    assert state.updates == 1
    assert all(parameter.isfinite().all() for parameter in state.model.parameters())


def stop_all(data_path: Path, folder: Path) -> None:
    run_group(2, break_on_rank_1, folder, data_path)


def test_a_loss_that_is_not_finite_on_one_process_stops_all_before_the_update(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    make_job(config(tiny_data[0], tmp_path), annotate(tiny_data[0], num_val=5))
    run_spawned(stop_all, tiny_data[0], tmp_path)


@dataclass(frozen=True)
class CountingProcess(Process):
    """Counts its collectives."""

    asked: list[int] = field(default_factory=list)

    def any_rank(self, *flags: bool | Tensor) -> tuple[bool, ...]:
        self.asked.append(len(flags))
        return super().any_rank(*flags)


def test_processes_exchange_flags_once_per_update(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    process = CountingProcess(0, 1, 1, torch.device("cpu"), 0)
    settings = config(tiny_data[0], tmp_path, batch_size=2, grad_accum_steps=2)
    state = make_train_state(settings, annotate(tiny_data[0]), process, build=build_small)
    fit(state, lambda *_: None)
    assert state.updates == 2 * 5  # 9 batches an epoch
    assert len(process.asked) == state.updates + settings.num_epochs  # and after validation
