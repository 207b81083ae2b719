"""Training on a GPU: as on the CPU, in mixed precision, resumed, and by torchrun."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from k400tiny_lib.config import Config
from k400tiny_lib.data.loading.loader import batches, make_loader
from k400tiny_lib.distributed.launch import launch
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.models.checkpoint import read_checkpoint
from k400tiny_lib.training.loop import Interrupted, fit
from k400tiny_lib.training.state import TrainState, gather_state, load_state
from k400tiny_lib.training.worker import make_train_state
from tests.helpers.training import CPU, annotate, build_small, config, make_job

pytestmark = pytest.mark.gpu


def make(settings: Config, process: Process, **changes: Any) -> TrainState:
    """A state of `Small`, or of the real model with build=None."""
    annotations = annotate(Path(settings.data_path))
    return make_train_state(settings, annotations, process, **({"build": build_small} | changes))


def weights(state: TrainState) -> dict[str, Tensor]:
    """Copies on the CPU."""
    return {name: tensor.cpu().clone() for name, tensor in state.model.state_dict().items()}


def losses(state: TrainState) -> list[float]:
    """The training loss of every epoch."""
    found: list[float] = []
    fit(state, lambda state, metrics, is_best: found.append(metrics["train_loss"]))
    return found


def test_two_epochs_have_the_weights_and_metrics_of_the_cpu(
    device: torch.device, process: Process, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    found: list[list[dict[str, float]]] = []
    trained: list[dict[str, Tensor]] = []
    for where in (CPU, process):
        settings = config(tiny_data[0], tmp_path, clip_grad_norm=1.0, grad_accum_steps=2)
        state = make(settings.replace(ema_decay=0.5), where)
        metrics: list[dict[str, float]] = []
        fit(state, lambda state, values, is_best, metrics=metrics: metrics.append(values))
        found.append(metrics)
        trained.append(weights(state))
    for theirs, ours in zip(*found, strict=True):
        for name in ("train_loss", "train_acc1", "val_loss", "val_acc1", "lr"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3), name
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("amp", ["auto", "bf16", "fp16", "off"])
def test_the_real_model_learns_in_every_precision(
    process: Process, tiny_data: tuple[Path, Path], tmp_path: Path, amp: str
) -> None:
    # On a CPU, oneDNN computes wrong bf16 gradients for 3D convolutions over few frames.
    settings = config(tiny_data[0], tmp_path, amp=amp, channels_last=True, num_epochs=6)
    settings = settings.replace(optimizer="adamw", lr=1e-3, augmentation="none")
    found = losses(make(settings, process, build=None))
    assert all(map(torch.tensor(found).isfinite().tolist().__getitem__, range(6)))
    assert found[-1] < 0.7 * found[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_compiling_does_not_change_what_is_learned(
    process: Process, tiny_data: tuple[Path, Path], tmp_path: Path, compiled: bool
) -> None:
    torch.compiler.reset()
    settings = config(tiny_data[0], tmp_path, channels_last="auto")
    eager = losses(make(settings, process))
    assert losses(make(settings.replace(compile=compiled), process)) == pytest.approx(
        eager, rel=1e-3
    )


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_an_interrupted_training_ends_with_the_weights_of_an_undisturbed_one(
    process: Process, tiny_data: tuple[Path, Path], tmp_path: Path, amp: str
) -> None:
    settings = config(tiny_data[0], tmp_path, amp=amp, dropout=0.5, ema_decay=0.9)
    undisturbed = make(settings, process)
    losses(undisturbed)

    saved = io.BytesIO()
    state = make(settings, process)
    state.stop = lambda: state.updates >= 2
    with pytest.raises(Interrupted):
        fit(state, lambda *_: None, lambda state: torch.save(gather_state(state), saved))
    assert state.scaler.is_enabled() == (amp == "fp16")
    saved.seek(0)
    content = torch.load(saved, map_location="cpu", weights_only=True)
    assert bool(content["scaler"]) == (amp == "fp16")

    resumed = make(settings, process)
    load_state(resumed, content, "a checkpoint")
    if amp == "fp16":
        assert resumed.scaler.get_scale() == content["scaler"]["scale"]
    losses(resumed)
    assert resumed.updates == undisturbed.updates
    # The kernels are deterministic here (see `exact`): not a bit differs.
    for name, tensor in weights(undisturbed).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def test_a_checkpoint_of_one_device_continues_on_the_other(
    process: Process, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(tiny_data[0], tmp_path)
    for first, second in ((process, CPU), (CPU, process)):
        state, saved = make(settings.replace(num_epochs=1), first), io.BytesIO()
        losses(state)
        torch.save(gather_state(state), saved)
        saved.seek(0)
        resumed = make(settings, second)
        load_state(resumed, torch.load(saved, map_location="cpu", weights_only=True), "it")
        assert len(losses(resumed)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_clips_come_in_pinned_memory_and_reach_the_device_unchanged(
    device: torch.device,
    process: Process,
    tiny_data: tuple[Path, Path],
    tmp_path: Path,
    num_workers: int,
) -> None:
    dataset = make(config(tiny_data[0], tmp_path), process).train_loader.dataset
    order = range(len(dataset))  # type: ignore[arg-type]
    loader = make_loader(dataset, order, batch_size=4, num_workers=num_workers)
    seen = 0
    for clips, targets, positions in batches(loader):
        if device.type == "cuda":
            assert clips.is_pinned()
            assert targets.is_pinned()
        moved = clips.to(device, non_blocking=True).cpu()
        expected = torch.stack([dataset[int(position)][0] for position in positions])
        assert torch.equal(moved, expected)
        seen += len(clips)
    assert seen == len(order)


@pytest.mark.parametrize("sync_bn", [False, True])
def test_one_process_of_torchrun_trains_and_resumes(
    device: torch.device, tiny_data: tuple[Path, Path], tmp_path: Path, sync_bn: bool
) -> None:
    sync_bn = sync_bn and device.type == "cuda"
    settings = config(tiny_data[0], tmp_path, nproc_per_node=1, sync_bn=sync_bn, num_epochs=1)
    annotations = annotate(tiny_data[0])
    launch(make_job(settings, annotations), module="tests.helpers.training")
    assert read_checkpoint(tmp_path / "last.pt", "it")["epoch"] == 1
    settings = settings.replace(num_epochs=2, resume=str(tmp_path / "last.pt"))
    launch(make_job(settings, annotations, "second"), module="tests.helpers.training")
    assert read_checkpoint(tmp_path / "last.pt", "it")["epoch"] == 2


def test_several_gpus_with_sync_bn_train_as_one(
    device: torch.device, tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus < 2:
        pytest.skip("there are fewer than two GPUs")
    trained = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        settings = config(
            tiny_data[0],
            folder,
            nproc_per_node=processes,
            batch_size=4 // processes,
            sync_bn=True,
            num_epochs=1,
        )
        folder.mkdir()
        launch(make_job(settings, annotate(tiny_data[0])), module="tests.helpers.training")
        trained.append(read_checkpoint(folder / "last.pt", "it")["model"])
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-2, atol=1e-3, msg=name)
