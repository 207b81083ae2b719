"""The learning benchmark: honest folds, and a reference that is what it says."""

from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from benchmarks.learning import CPU, REFERENCE, folds, make_reference
from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.training.worker import make_train_state
from tests.conftest import LABELS, NUM_FRAMES


def clips_of(data_path: Path) -> list[Clip]:
    return [
        Clip(folder.name, (0, NUM_FRAMES - 1), int(folder.name[1]), folder.name[:4])
        for folder in sorted(data_path.iterdir())
    ]


def test_each_clip_is_held_out_once_from_a_training_without_its_source(
    tiny_data: tuple[Path, Path],
) -> None:
    clips = clips_of(tiny_data[0])
    cut = folds(clips, 4)
    held_out = sorted(clip.video for _, held in cut for clip in held)
    assert held_out == [clip.video for clip in clips]
    for train, held in cut:
        assert len(train) + len(held) == len(clips)
        assert not {clip.group for clip in train} & {clip.group for clip in held}
        assert {clip.target for clip in train} == {0, 1, 2}


def test_the_reference_sees_all_clips_in_one_order_with_the_same_pixels(
    tiny_data: tuple[Path, Path], tmp_path: Path
) -> None:
    clips = clips_of(tiny_data[0])[::2][:7]
    annotations = Annotations(
        {label: index for index, label in enumerate(LABELS)},
        {"train": clips, "val": clips[:1], "test": clips[:1]},
    )
    config = Config(
        **REFERENCE,
        data_path=str(tiny_data[0]),
        clip_len=4,
        resize_size=32,
        crop_size=32,
        batch_size=4,
        num_workers=0,
        num_epochs=3,
    )
    state = make_train_state(config, annotations, CPU)
    make_reference(state)

    def epoch(number: int) -> tuple[list[int], torch.Tensor]:
        loader: DataLoader[Any] = state.train_loader
        loader.sampler.set_epoch(number)  # type: ignore[attr-defined]
        loader.dataset.epoch = number  # type: ignore[attr-defined]
        batches = list(loader)
        return torch.cat([b[2] for b in batches]).tolist(), torch.cat([b[0] for b in batches])

    first, second = epoch(0), epoch(1)
    assert first[0] == second[0] == list(range(len(clips)))
    assert torch.equal(first[1], second[1])
    for _ in range(10):
        state.optimizer.step()
        state.scheduler.step()
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.1]
