"""A resumed run continues the learning rate schedule at the same position in epochs."""

import contextlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from k400tiny_lib.distributed.process import Process
from k400tiny_lib.training.loop import Interrupted, fit
from k400tiny_lib.training.state import TrainState, gather_state, load_state
from k400tiny_lib.training.worker import make_train_state
from tests.helpers.training import annotate, build_small, config, run_group, run_spawned

Rates = list[tuple[float, float]]  # position in epochs and learning rate of each update


@dataclass(frozen=True)
class Setting:
    """What determines the number of updates in an epoch of 16 clips."""

    processes: int = 1
    batch_size: int = 2
    grad_accum_steps: int = 1


CHANGES = {
    "twice the processes": (Setting(), Setting(processes=2)),
    "half the processes": (Setting(processes=2), Setting()),
    "twice the batch": (Setting(), Setting(batch_size=4)),
    "twice the processes, half the batch": (Setting(), Setting(processes=2, batch_size=1)),
    "accumulation": (Setting(), Setting(grad_accum_steps=3)),
}


def make_state(process: Process, folder: Path, data_path: Path, setting: Setting) -> TrainState:
    settings = config(
        data_path,
        folder,
        num_epochs=4,
        batch_size=setting.batch_size,
        grad_accum_steps=setting.grad_accum_steps,
        scheduler="cosine",
        warmup_epochs=1.0,
    )
    annotations = annotate(data_path, num_val=2, num_train=16)
    return make_train_state(settings, annotations, process, build=build_small)


def position(state: TrainState) -> float:
    return state.epoch + state.batch / len(state.train_loader)


def stop_at(
    process: Process, folder: Path, data_path: Path, setting: Setting, end: float, name: str
) -> None:
    """Train up to a position in epochs, and write the state."""
    state = make_state(process, folder, data_path, setting)

    def save(state: TrainState) -> None:
        content = gather_state(state)
        if process.is_main:
            torch.save(content, folder / name)

    def on_epoch(state: TrainState, *_: Any) -> None:
        if state.epoch == end:
            save(state)
            raise Interrupted

    # Asked before an update is counted; at the end of an epoch it would come before validation.
    step = 1 / len(state.train_loader)
    state.stop = lambda: end % 1 != 0 and position(state) + step >= end
    with contextlib.suppress(Interrupted):
        fit(state, on_epoch, save)


def note_rates(
    process: Process, folder: Path, data_path: Path, setting: Setting, checkpoint: str, name: str
) -> None:
    """Train, from a checkpoint if one is named, and write the rates."""
    state = make_state(process, folder, data_path, setting)
    if checkpoint:
        load_state(state, torch.load(folder / checkpoint, weights_only=True), "the checkpoint")
    rates: Rates = []
    state.optimizer.register_step_post_hook(
        lambda optimizer, *_: rates.append((position(state), optimizer.param_groups[0]["lr"]))
    )
    fit(state, lambda *_: None)
    if process.is_main:
        (folder / f"{name}.json").write_text(json.dumps(rates))


def train_all(data_path: Path, folder: Path) -> None:
    def run(function: Callable[..., None], setting: Setting, *arguments: Any) -> None:
        run_group(setting.processes, function, folder, data_path, setting, *arguments)

    for name, (before, after) in CHANGES.items():
        run(stop_at, before, 2.0, "after two epochs.pt")
        run(note_rates, after, "after two epochs.pt", f"{name}, resumed")
        run(note_rates, after, "", f"{name}, uninterrupted")
    run(stop_at, Setting(), 1.5, "within an epoch.pt")
    run(note_rates, CHANGES["accumulation"][1], "within an epoch.pt", "within an epoch")


@pytest.fixture(scope="module")
def rates(
    tiny_data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Rates]:
    """The rates by the name of the run."""
    folder = tmp_path_factory.mktemp("rates")
    run_spawned(train_all, tiny_data[0], folder)
    return {
        path.stem: [(position, rate) for position, rate in json.loads(path.read_text())]
        for path in folder.glob("*.json")
    }


@pytest.mark.parametrize("change", CHANGES)
def test_a_resumed_run_has_the_rates_of_an_uninterrupted_one(
    rates: dict[str, Rates], change: str
) -> None:
    resumed = rates[f"{change}, resumed"]
    assert resumed[0][0] == 2.0
    assert resumed == [entry for entry in rates[f"{change}, uninterrupted"] if entry[0] >= 2.0]
    # And the run that was interrupted would have continued with the same: a third of the cosine
    # after one epoch of warm-up.
    assert resumed[0][1] == pytest.approx(0.01 * (1 + math.cos(math.pi / 3)) / 2)


def test_within_an_epoch_another_accumulation_continues_at_the_same_position(
    rates: dict[str, Rates],
) -> None:
    resumed, uninterrupted = rates["within an epoch"], rates["accumulation, uninterrupted"]
    # After batch 4 of 8 the update of batches 4 to 6 has two batches left.
    assert resumed[0] == (1.5, dict(uninterrupted)[1 + 3 / 8])
    assert resumed[1:] == [entry for entry in uninterrupted if entry[0] > 1.5]
