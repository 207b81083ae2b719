"""The loop and its workers: training learns, and counts every clip once."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn
from torch.utils.data import DistributedSampler

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.distributed.launch import launch
from k400tiny_lib.errors import UserError
from k400tiny_lib.metrics_log import read_entries
from k400tiny_lib.models.checkpoint import read_checkpoint, write_checkpoint
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.training.loop import fit, validate
from k400tiny_lib.training.meters import Meters
from k400tiny_lib.training.worker import make_train_state, work
from tests.helpers.training import CPU, annotate, build_small, config, make_job


def test_a_single_batch_is_learned_by_heart(tiny_data: tuple[Path, Path], tmp_path: Path) -> None:
    annotations = annotate(tiny_data[0])
    six = [
        clip for target in range(3) for clip in annotations.splits["train"] if clip.target == target
    ][::3][:6]
    few = Annotations(annotations.categories, {"train": six, "val": six, "test": six})
    settings = config(
        tiny_data[0],
        tmp_path,
        batch_size=6,
        num_epochs=8,
        augmentation="none",
        optimizer="adamw",
        lr=1e-3,
        scheduler="constant",
    )
    state = make_train_state(settings, few, CPU)
    seen: list[dict[str, float]] = []
    fit(state, lambda _, metrics, best: seen.append(metrics))
    assert seen[-1]["train_acc1"] == 100.0
    assert seen[-1]["train_loss"] < 0.3 * seen[0]["train_loss"]


def test_two_processes_count_each_validation_clip_once(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    annotations = annotate(tiny_data[0], num_val=5)  # odd: padding to even would count one twice
    settings = config(tiny_data[0], tmp_path, nproc_per_node=2, num_epochs=1, batch_size=2)
    job = make_job(settings, annotations)
    launch(job)
    entries = [entry for entry, _ in read_entries(job.metrics_log)]
    assert [entry.step for entry in entries] == [1]
    alone = make_train_state(settings.replace(batch_size=5), annotations, CPU)
    alone.model.load_state_dict(read_checkpoint(tmp_path / "best.pt", "checkpoint")["model"])
    for name, value in validate(alone).items():
        # The same float32 forward passes in batches of other sizes.
        assert entries[0].metrics[name] == pytest.approx(value, rel=1e-4), name
    assert (tmp_path / "last.pt").exists()


def test_a_mistake_found_by_a_worker_reaches_the_launcher_as_its_line(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(tiny_data[0], tmp_path, batch_size=1000)
    with pytest.raises(UserError, match=r"^batch_size: 1000 on 1 process"):
        launch(make_job(settings, annotate(tiny_data[0])))


def test_a_loss_that_is_not_finite_stops_with_the_epoch_the_batch_and_its_clips(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = config(tiny_data[0], tmp_path, lr=1e30, optimizer="sgd", scheduler="constant")
    annotations = annotate(tiny_data[0])
    state = make_train_state(settings, annotations, CPU)
    with pytest.raises(UserError) as caught:
        fit(state, lambda *_: None)
    match = re.match(
        r"lr: the loss is (nan|inf) in epoch 1, batch (\d+), of the clips (.*?)\.",
        str(caught.value),
    )
    assert match
    # The order of PyTorch's sampler under the same seed and epoch.
    clips = annotations.splits["train"]
    sampler: DistributedSampler[Any] = DistributedSampler(clips, 1, 0, seed=0)  # type: ignore
    batch = list(sampler)[4 * (int(match[2]) - 1) :][:4]
    assert match[3].split(", ") == [clips[position].video for position in batch]


def test_sync_bn_on_a_cpu_is_refused(tiny_data: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^sync_bn: "):
        make_train_state(config(tiny_data[0], tmp_path, sync_bn=True), annotate(tiny_data[0]), CPU)


def test_a_checkpoint_starts_a_model_with_another_head(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    source = build_model("r2plus1d_18", 400).state_dict()
    write_checkpoint(
        {"model": source, "epoch": 1, "config": {}, "categories": {}}, tmp_path / "best.pt"
    )
    settings = config(tiny_data[0], tmp_path, load_model=str(tmp_path / "best.pt"))
    state = make_train_state(settings, annotate(tiny_data[0]), CPU)
    weights = state.model.state_dict()
    assert weights["fc.weight"].shape == (3, 512)
    assert torch.equal(weights["layer4.1.conv2.0.0.weight"], source["layer4.1.conv2.0.0.weight"])


def test_meters_agree_with_scikit_learn_over_uneven_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(17, 7, generator=generator)
    targets = torch.randint(0, 7, (17,), generator=generator)
    meters = Meters(7, torch.device("cpu"))
    for part in (slice(0, 8), slice(8, 16), slice(16, 17)):
        loss = torch.nn.functional.cross_entropy(logits[part], targets[part])
        meters.update(loss, logits[part], targets[part])
    metrics = meters.compute("val")
    probabilities = logits.double().softmax(1).numpy()
    assert metrics["val_loss"] == pytest.approx(
        log_loss(targets, probabilities, labels=range(7)), rel=1e-5
    )
    assert metrics["val_acc1"] == pytest.approx(100 * accuracy_score(targets, logits.argmax(1)))
    top5 = top_k_accuracy_score(targets, probabilities, k=5, labels=range(7))
    assert metrics["val_acc5"] == pytest.approx(100 * top5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_trains_as_a_plain_one(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    losses = []
    for compiled in (False, True):
        settings = config(tiny_data[0], tmp_path, compile=compiled, num_epochs=1)
        annotations = annotate(tiny_data[0], num_val=2, num_train=4)
        state = make_train_state(settings, annotations, CPU, build=build_small)
        fit(state, lambda _, metrics, best: losses.append(metrics["val_loss"]))
    # Fused kernels round otherwise.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_x3d_has_no_sizes_that_compiling_fails_on() -> None:
    # The compiler's guards compare them; on NumPy's integers they fail.
    model = build_model("x3d_s", 3)
    for name, module in model.named_modules():
        sizes = [v for v in vars(module).values() if isinstance(v, tuple)]
        assert not any(isinstance(size, np.generic) for size in sum(sizes, ())), name
    # Traced by the real compiler, without its minutes of generating code.
    model.compile(backend="eager")
    assert model(torch.rand(1, 3, 4, 32, 32)).shape == (1, 3)


def test_a_compiler_that_is_missing_is_one_line(
    tiny_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def build(config: Config, num_classes: int) -> nn.Module:
        raise InvalidCxxCompiler

    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))  # as torchrun does
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "0")
    job = make_job(config(tiny_data[0], tmp_path), annotate(tiny_data[0]))
    assert work(job, build) == 2
    assert job.error.read_text().startswith("compile: torch.compile fails here (")
    assert "Needed: a C++ compiler" in job.error.read_text()
