"""Weights or losses that are not finite are never saved, and never used."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from k400tiny_lib.config import Config
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.checkpoint import newest_checkpoint, read_checkpoint, write_checkpoint
from k400tiny_lib.models.loaded import load_model
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.loop import Interrupted, fit
from k400tiny_lib.training.reporting import Reporter
from k400tiny_lib.training.state import TrainState
from k400tiny_lib.training.worker import make_train_state, run
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


def start(process: Process, folder: Path, data_path: Path, **changes: Any) -> TrainState:
    settings = config(data_path, folder, batch_size=2, **changes)
    annotations = annotate(data_path, num_val=4, num_train=8)
    state = make_train_state(settings, annotations, process, build=build_small)
    reporter = Reporter(state, "run", folder / "metrics-run.jsonl", annotations.categories)
    state.save_due = lambda: False

    def on_epoch(*arguments: Any) -> None:
        reporter.on_epoch(*arguments)
        on_epoch.seen += 1  # type: ignore[attr-defined]

    on_epoch.seen = 0  # type: ignore[attr-defined]
    state.fit = lambda: fit(state, on_epoch, reporter.save)  # type: ignore[attr-defined]
    return state


def break_weight(state: TrainState) -> None:
    with torch.no_grad():
        state.model.fc.weight[0, 0] = math.nan  # type: ignore[union-attr, index, operator]


def break_statistics(state: TrainState) -> None:
    state.model.norm.running_var[0] = math.inf  # type: ignore[union-attr, index, operator]


def break_average(state: TrainState) -> None:
    assert state.average is not None
    with torch.no_grad():
        state.average.module.fc.bias[0] = math.nan


def break_validation(state: TrainState) -> None:
    def poison(model: nn.Module, inputs: Any, logits: Tensor) -> Tensor | None:
        return None if model.training else logits * math.nan

    state.evaluated_model.register_forward_hook(poison)


BREAKS = {
    "fc.weight is not finite": break_weight,
    "norm.running_var is not finite": break_statistics,
    "average of fc.bias is not finite": break_average,
    "val_loss is nan": break_validation,
}


def after_updates(state: TrainState, updates: int, action: Callable[[TrainState], None]) -> None:
    """Call an action after an update, which is after the gradients were found finite."""

    def hook(*_: Any) -> None:
        if state.updates + 1 == updates:
            action(state)

    state.optimizer.register_step_post_hook(hook)
    update = state.average.update_parameters if state.average is not None else None

    def last(model: nn.Module) -> None:
        assert update is not None
        update(model)
        if state.updates == updates:
            action(state)

    if state.average is not None:
        state.average.update_parameters = last  # type: ignore[method-assign]


@pytest.mark.parametrize("found", BREAKS)
def test_an_epoch_that_ends_broken_is_not_saved_and_the_one_before_stays(
    tiny_data: tuple[Path, Path], tmp_path: Path, found: str
) -> None:
    state = start(CPU, tmp_path, tiny_data[0], ema_decay=0.5 if "average" in found else 0.0)
    after_updates(state, 8, BREAKS[found])  # the last of epoch 2
    with pytest.raises(UserError, match=rf"^lr: {found} after epoch 2\. Needed: a smaller lr th"):
        state.fit()  # type: ignore[attr-defined]
    for name in ("best.pt", "last.pt"):
        assert read_checkpoint(tmp_path / name, "x")["epoch"] == 1, name
    assert len((tmp_path / "metrics-run.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("ask", ["save_due", "stop"])
def test_a_save_within_an_epoch_refuses_broken_weights(
    tiny_data: tuple[Path, Path], tmp_path: Path, ask: str
) -> None:
    state = start(CPU, tmp_path, tiny_data[0])
    after_updates(state, 2, break_weight)
    setattr(state, ask, lambda: state.updates == 1)  # asked before the update is counted
    with pytest.raises(UserError, match=r"^lr: fc\.weight is not finite after epoch 1, batch 2\."):
        state.fit()  # type: ignore[attr-defined]
    assert not (tmp_path / "last.pt").exists()


def test_a_rate_that_breaks_the_only_update_of_an_epoch_saves_nothing(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(
        tiny_data[0], tmp_path, batch_size=8, lr=1e20, num_epochs=1, scheduler="constant"
    )
    job = make_job(settings, annotate(tiny_data[0], num_val=4, num_train=8))
    with pytest.raises(UserError, match=r"^lr: "):
        run(job, CPU, build_slim)
    assert not list(tmp_path.glob("*.pt"))


def break_on_rank_1(process: Process, folder: Path, data_path: Path) -> None:
    state = start(process, folder, data_path)
    if process.rank == 1:  # its statistics differ until the end of the epoch
        after_updates(state, 1, break_statistics)
    state.save_due = lambda: state.updates == 0
    with pytest.raises(UserError, match=r"norm\.running_var is not finite after epoch 1, batch 1"):
        state.fit()  # type: ignore[attr-defined]


def stop_all(data_path: Path, folder: Path) -> None:
    run_group(2, break_on_rank_1, folder, data_path)


def test_all_processes_stop_for_one_of_them(tiny_data: tuple[Path, Path], tmp_path: Path) -> None:
    run_spawned(stop_all, tiny_data[0], tmp_path)
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("name", "value"), [("fc.weight", math.nan), ("stem.1.running_var", math.inf)]
)
def test_broken_weights_are_refused_by_evaluation_export_and_training(
    tmp_path: Path, name: str, value: float
) -> None:
    model = build_model("r2plus1d_18", 3).state_dict()
    model[name].view(-1)[0] = value
    best = tmp_path / "best.pt"
    content = {"model": model, "epoch": 1, "config": Config().to_dict(), "categories": {"a": 0}}
    write_checkpoint(content, best)
    with pytest.raises(UserError, match=rf"^checkpoint: .*not finite \(1 of \d+ tensors, .*{name}"):
        load_model(Config(checkpoint=str(best)))
    # A last.pt of before this was refused: the one before it is continued.
    resumable = content | {"processes": [{}], "raw_model": model, "run_id": "r"}
    write_checkpoint(resumable, tmp_path / "last.pt")
    sound = build_model("r2plus1d_18", 3).state_dict()
    write_checkpoint(resumable | {"model": sound, "raw_model": sound}, tmp_path / "previous.pt")
    assert newest_checkpoint(tmp_path) == tmp_path / "previous.pt"


def test_a_signal_after_a_sound_update_still_saves(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    state = start(CPU, tmp_path, tiny_data[0])
    state.stop = lambda: state.updates == 1
    with pytest.raises(Interrupted):
        state.fit()  # type: ignore[attr-defined]
    assert (tmp_path / "last.pt").exists()
