"""Batches: independent of the workers, different in every epoch, with errors as one line."""

import errno
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading.dataset import ClipDataset, ClipTable
from k400tiny_lib.data.loading.loader import batches, make_loader, worker_count
from k400tiny_lib.data.loading.readers import ImageFiles, read_frames
from k400tiny_lib.distributed.process import Process
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.training.loop import train_epoch
from k400tiny_lib.training.worker import make_train_state
from tests.conftest import NUM_FRAMES, write_clip
from tests.helpers.frames import resize_and_crop

NUM_CLIPS = 6


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loading")
    for number in range(NUM_CLIPS):
        write_clip(root / f"clip{number}", seed=number)
    return root


def clips_of(root: Path) -> list[Clip]:
    folders = sorted(path.name for path in root.iterdir())
    return [Clip(name, (0, NUM_FRAMES - 1), n % 3, name) for n, name in enumerate(folders)]


def dataset_of(root: Path, **options: Any) -> ClipDataset:
    settings: dict[str, Any] = {"clip_len": 4, "crop_size": 24, "seed": 0} | options
    return ClipDataset(clips_of(root), ImageFiles(root, 28), **settings)


def pixels(dataset: Dataset[Any], num_workers: int, batch_size: int = 4) -> torch.Tensor:
    loader = make_loader(dataset, range(NUM_CLIPS), batch_size=batch_size, num_workers=num_workers)
    return torch.cat([clips for clips, _, _ in batches(loader)])


def test_a_validation_clip_is_the_resized_and_cropped_uniform_frames(frames: Path) -> None:
    clip, target, position = dataset_of(frames)[4]
    whole = read_frames(frames / "clip4", uniform_indices(NUM_FRAMES, 4).tolist())
    assert torch.equal(clip, resize_and_crop(whole, 28, 24))
    assert (target, position) == (1, 4)


def test_the_number_of_workers_and_the_batch_size_change_nothing(frames: Path) -> None:
    dataset = dataset_of(frames, training=True, augmentation="strong")
    expected = torch.stack([dataset[position][0] for position in range(NUM_CLIPS)])
    for num_workers, batch_size in ((0, 4), (1, 2), (2, 3)):
        assert torch.equal(pixels(dataset, num_workers, batch_size), expected)


def test_no_two_workers_epochs_or_seeds_repeat_an_augmentation(tmp_path: Path) -> None:
    """All clips are equal: only the randomness differs."""
    for number in range(NUM_CLIPS):
        write_clip(tmp_path / f"clip{number}", seed=0)
    seen = set()
    for seed in (0, 1):
        dataset = dataset_of(tmp_path, training=True, augmentation="standard", seed=seed)
        for epoch in (0, 1, 2):
            dataset.epoch = epoch
            seen |= {clip.numpy().tobytes() for clip in pixels(dataset, num_workers=2)}
    assert len(seen) == 2 * 3 * NUM_CLIPS


def test_the_same_epoch_gives_the_same_clips_again(frames: Path) -> None:
    dataset = dataset_of(frames, training=True, augmentation="standard")
    dataset.epoch = 7
    first = pixels(dataset, num_workers=1)
    torch.rand(5)  # whatever happened in between
    assert torch.equal(pixels(dataset, num_workers=1), first)


def test_classes_that_are_never_mirrored_stay_as_they_are(frames: Path) -> None:
    with_flip = dataset_of(frames, training=True, augmentation="flip")
    without = dataset_of(frames, training=True, augmentation="flip", no_flip=frozenset({0, 1, 2}))
    plain = dataset_of(frames, training=True)
    mirrored = 0
    for epoch in range(4):
        for dataset in (with_flip, without, plain):
            dataset.epoch = epoch
        expected = pixels(plain, 0)
        assert torch.equal(pixels(without, 0), expected)
        mirrored += int(not torch.equal(pixels(with_flip, 0), expected))
    assert mirrored == 4  # the chance that six clips all stay is 1 in 64, and the seed is fixed


def test_a_table_of_clips_is_the_list_it_was_made_of(frames: Path) -> None:
    clips = [*clips_of(frames), Clip("späte Übung", (3, 9), 399, "-_gruppe")]
    table = ClipTable(clips)
    assert list(table) == clips
    assert table[-1] == clips[-1]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_frame_that_goes_bad_names_itself_in_one_line(tmp_path: Path, num_workers: int) -> None:
    for number in range(NUM_CLIPS):
        write_clip(tmp_path / f"clip{number}", seed=number)
    for path in (tmp_path / "clip3").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError) as caught:
        pixels(dataset_of(tmp_path), num_workers)
    bad = tmp_path / "clip3" / "frame00.jpg"
    assert str(caught.value) == (
        f"data_path: {bad} is no image. Run prepare_data again, or mend the file."
    )


def test_a_frame_that_goes_bad_stops_training_with_the_line_for_the_user(tmp_path: Path) -> None:
    for number in range(NUM_CLIPS):
        write_clip(tmp_path / f"clip{number}", seed=number)
    clips = clips_of(tmp_path)
    annotations = Annotations({"a": 0, "b": 1, "c": 2}, {"train": clips, "val": clips, "test": []})
    config = Config(
        data_path=str(tmp_path),
        clip_len=2,
        resize_size=16,
        crop_size=16,
        batch_size=NUM_CLIPS,
        num_workers=1,
        model="r3d_18",
    )
    state = make_train_state(config, annotations, Process(0, 1, 1, torch.device("cpu"), 0))
    for path in (tmp_path / "clip3").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"^data_path: .*clip3/frame0\d\.jpg is no image[^\n]*$"):
        train_epoch(state, lambda state: None)


def test_other_errors_of_a_worker_keep_their_traceback() -> None:
    class Wrong(Dataset[Any]):
        def __getitem__(self, position: int) -> Any:
            raise ValueError("a mistake of ours")

    loader: Any = torch.utils.data.DataLoader(Wrong(), sampler=range(1), num_workers=1)
    with pytest.raises(ValueError, match="Traceback"):
        list(batches(loader))


@pytest.mark.parametrize("num_workers", [1, 2])
def test_no_worker_outlives_an_error_whose_traceback_is_kept(num_workers: int) -> None:
    """At exit Python would wait for it forever, since it ignores SIGTERM."""

    class Wrong(Dataset[Any]):
        def __getitem__(self, position: int) -> Any:
            raise ValueError(position)

    before = multiprocessing.active_children()
    loader: Any = make_loader(Wrong(), range(9), batch_size=1, num_workers=num_workers)
    with pytest.raises(ValueError, match="Traceback") as caught:
        list(batches(loader))
    assert set(multiprocessing.active_children()) <= set(before)
    assert caught.tb is not None


def test_auto_workers_share_the_cores_of_a_node() -> None:
    counts = [worker_count("auto", processes, cores=12) for processes in (1, 2, 4, 16)]
    assert counts == [8, 6, 3, 1]
    assert worker_count(0, 4) == 0


class FullSharedMemory(Dataset[Any]):
    """Raises in the worker what PyTorch raises there when /dev/shm is full."""

    def __init__(self, message: str) -> None:
        self.message = message

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError(self.message)


@pytest.mark.parametrize(
    "message",
    [
        "unable to allocate shared memory(shm) for file </torch_1_2>: No space left on device (28)",
        "unable to write to file </torch_1_2>",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that the "
        "workers are out of shared memory. Please try to raise your shared memory limit.",
    ],
)
def test_full_shared_memory_is_one_line_with_what_to_do(message: str) -> None:
    loader = make_loader(FullSharedMemory(message), range(4), batch_size=2, num_workers=1)
    with pytest.raises(UserError) as caught:
        list(batches(loader))
    assert re.match(r"num_workers: the shared memory .*/dev/shm. is full", str(caught.value))
    assert "\n" not in str(caught.value)
    for advice in ("num_workers=0", "--shm-size"):
        assert advice in str(caught.value)


def test_no_room_for_the_queues_of_workers_is_the_same_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(multiprocessing, "Semaphore", full)
    dataset = FullSharedMemory("never read")
    with pytest.raises(UserError, match=r"^num_workers: the shared memory"):
        list(batches(make_loader(dataset, range(4), batch_size=2, num_workers=1)))
    with pytest.raises(RuntimeError, match="never read"):  # without workers there are no queues
        list(batches(make_loader(dataset, range(4), batch_size=2, num_workers=0)))
