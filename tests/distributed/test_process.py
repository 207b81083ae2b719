"""One process and two follow the same losses; what one of them meets, none waits for."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from k400tiny_lib.data.annotations import read_annotations
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.training.loop import Trainer, fit
from k400tiny_lib.training.worker import make_trainer
from tests.helpers.training import CPU, annotate, config, in_nursery, make_job, run_group

GLOBAL_BATCH = 4


def follow(process: Process, folder: Path, data_path: Path, name: str) -> None:
    """Train with frozen BatchNorm statistics; leave the loss of each update and the scores."""
    settled = config(
        data_path,
        folder,
        model="mc3_18",
        num_epochs=2,
        lr=1e-3,
        momentum=0.9,
        batch_size=GLOBAL_BATCH // process.world_size,
    )
    trainer = make_trainer(settled, read_annotations(Path(settled.annotations)), process)
    for module in trainer.model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign]
            module.training = False
    losses: list[float] = []
    scores: list[dict[str, float]] = []

    def note(trainer: Trainer) -> None:
        losses.append(float(sum(sums[1] for sums in process.gather(trainer.meters.sums))))

    fit(trainer, lambda _, metrics, best: scores.append(metrics), note)
    if process.is_main:
        weights = trainer.model.state_dict()
        torch.save({"losses": losses, "scores": scores, "model": weights}, folder / name)


def break_on_rank_1(process: Process, folder: Path, data_path: Path) -> None:
    """Train with a model that gives no number on rank 1 from its third batch on."""
    settled = config(data_path, folder, model="mc3_18", batch_size=2)
    annotations = read_annotations(Path(settled.annotations))
    trainer = make_trainer(settled, annotations, process)
    third = 2 * settled.batch_size
    order = list(trainer.train_loader.sampler)[third : third + settled.batch_size]
    names = process.gather([annotations.splits["train"][i].video for i in order])[1]

    def poison(model: nn.Module, inputs: Any, logits: torch.Tensor) -> torch.Tensor | None:
        return logits * math.nan if process.rank == 1 and trainer.batch == 2 else None

    trainer.model.register_forward_hook(poison)
    with pytest.raises(UserError) as caught:
        fit(trainer, lambda *_: None)
    assert f"nan in epoch 1, batch 3, of the clips {', '.join(names)}. " in str(caught.value)
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def compare(data_path: Path, folder: Path) -> None:
    make_job(config(data_path, folder), annotate(data_path, num_val=5))
    follow(CPU, folder, data_path, "one.pt")
    follow(CPU, folder, data_path, "again.pt")
    run_group(2, follow, folder, data_path, "two.pt")
    run_group(2, break_on_rank_1, folder, data_path)


def test_one_process_and_two_agree_and_share_a_broken_loss(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    in_nursery(compare, tiny_data[0], tmp_path)
    one, again, two = (
        torch.load(tmp_path / name, weights_only=True) for name in ("one.pt", "again.pt", "two.pt")
    )
    # Training is deterministic to the bit.
    assert one["losses"] == again["losses"]
    for name, tensor in one["model"].items():
        assert torch.equal(tensor, again["model"][name]), name
    # Sums in another order: float32 rounding, carried along by the updates.
    assert len(one["losses"]) == len(two["losses"]) > 4
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-3)
    for found, expected in zip(two["scores"], one["scores"], strict=True):
        for name in ("train_loss", "val_loss", "val_acc1"):
            # With a clip of the five counted twice the loss would be off by more.
            assert found[name] == pytest.approx(expected[name], rel=1e-3), name
