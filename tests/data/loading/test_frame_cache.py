"""The packed frame cache: the same pixels, whole after any death, found again by content."""

import hashlib
import multiprocessing
import shutil
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading import frame_cache as packing
from k400tiny_lib.data.loading.frame_cache import (
    CLIPS_PER_FILE,
    PackedFrames,
    estimated_bytes,
    is_complete,
    pack_clips,
    pack_folder,
    settle_frame_cache,
)
from k400tiny_lib.data.loading.loader import ClipDataset, batches, make_loader, worker_count
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.errors import UserError
from tests.conftest import NUM_FRAMES, write_clip

SIZE = 24
NUM_CLIPS = 3 * CLIPS_PER_FILE + 1


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("packing") / "frames"
    for number in range(NUM_CLIPS):
        # Some upright, some long.
        size = ((40, 48), (52, 40))[number % 2]
        write_clip(root / f"clip{number:02d}", seed=number, size=size)
    return root


@pytest.fixture(scope="module")
def annotations(frames: Path) -> Annotations:
    folders = sorted(path.name for path in frames.iterdir())
    clips = [Clip(name, (n % 2, NUM_FRAMES - 1), 0, name) for n, name in enumerate(folders)]
    return Annotations({"a": 0}, {"train": clips[4:], "val": clips[2:4], "test": clips[:2]}, "d1")


@pytest.fixture(scope="module")
def pack(frames: Path, annotations: Annotations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = pack_folder(annotations, frames, SIZE, tmp_path_factory.mktemp("cache"))
    pack_clips(annotations, frames, SIZE, folder, num_workers=2)
    return folder


def start_packing(
    annotations: Annotations, frames: Path, folder: Path
) -> multiprocessing.process.BaseProcess:
    def pack() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        # Forks share the lock of tqdm, and who is killed never gives it back.
        tqdm.set_lock(threading.RLock())
        pack_clips(annotations, frames, SIZE, folder, num_workers=0)

    process = multiprocessing.get_context("fork").Process(target=pack)
    process.start()
    return process


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def test_packed_frames_are_the_decoded_ones(
    frames: Path, annotations: Annotations, pack: Path
) -> None:
    read, packed = ImageFiles(frames, SIZE), PackedFrames(pack)
    for clip in annotations.clips:
        offsets = [0, 2, 2, clip.num_frames - 1]
        assert torch.equal(packed(clip, offsets), read(clip, offsets))


def test_training_from_a_pack_sees_the_pixels_of_training_from_files(
    frames: Path, annotations: Annotations, pack: Path
) -> None:
    def dataset(read: ImageFiles | PackedFrames) -> ClipDataset:
        return ClipDataset(
            annotations.splits["train"],
            read,
            clip_len=4,
            crop_size=20,
            training=True,
            augmentation="strong",
        )

    files, packed = dataset(ImageFiles(frames, SIZE)), dataset(PackedFrames(pack))
    for position in (0, 7, 40):
        assert torch.equal(files[position][0], packed[position][0])


def test_a_thread_that_reads_ahead_changes_no_pixel_and_no_randomness(
    pack: Path, annotations: Annotations
) -> None:
    clips = list(annotations.clips)
    dataset = ClipDataset(
        clips, PackedFrames(pack), clip_len=4, crop_size=24, training=True, augmentation="flip"
    )
    assert worker_count("auto", 1, dataset) == 0
    results = []
    for num_workers in (0, 1):
        loader = make_loader(dataset, range(len(clips)), batch_size=4, num_workers=num_workers)
        torch.manual_seed(3)
        results.append([(batch[0], torch.rand(2)) for batch in batches(loader)])
    for (ahead, drawn), (from_worker, drawn_beside_worker) in zip(*results, strict=True):
        assert torch.equal(ahead, from_worker)
        assert torch.equal(drawn, drawn_beside_worker)


def test_only_light_clips_are_read_without_worker_processes(
    frames: Path, pack: Path, annotations: Annotations
) -> None:
    def light(read: ImageFiles | PackedFrames, augmentation: str, training: bool) -> bool:
        return ClipDataset(
            list(annotations.clips),
            read,
            clip_len=4,
            crop_size=24,
            training=training,
            augmentation=augmentation,
        ).is_light

    packed, files = PackedFrames(pack), ImageFiles(frames, SIZE)
    assert light(packed, "none", True)
    assert light(packed, "flip", True)
    assert light(packed, "strong", False)
    assert not light(packed, "standard", True)
    assert not light(packed, "strong", True)
    assert not light(files, "none", True)


def test_a_damaged_pack_is_one_line_from_the_thread_that_reads_ahead(
    pack: Path, annotations: Annotations, tmp_path: Path
) -> None:
    copy = tmp_path / "pack"
    shutil.copytree(pack, copy)
    (copy / "000000.arrow").write_bytes(b"broken")
    dataset = ClipDataset(list(annotations.clips), PackedFrames(copy), clip_len=4, crop_size=24)
    loader = make_loader(dataset, range(len(dataset)), batch_size=1, num_workers=0)
    with pytest.raises(UserError, match=r"^frame_cache: [^\n]*000000.arrow cannot be read[^\n]*$"):
        list(batches(loader))


def test_opening_a_file_of_a_pack_copies_no_frame(pack: Path) -> None:
    path = pack / "000000.arrow"
    content = path.read_bytes()
    clips = packing._map_file(path)
    # In a mapped file the frames are as far apart as in the file.
    starts = {clip.ctypes.data - content.find(clip.tobytes()) for clip in clips}
    assert len(clips) == CLIPS_PER_FILE
    assert len(starts) == 1


def test_neither_the_number_of_processes_nor_the_order_of_clips_changes_a_byte(
    frames: Path, annotations: Annotations, pack: Path, tmp_path: Path
) -> None:
    splits = {name: clips[::-1] for name, clips in annotations.splits.items()}
    shuffled = Annotations(annotations.categories, splits, annotations.data_digest)
    pack_clips(shuffled, frames, SIZE, tmp_path / "again", num_workers=0)
    assert contents(tmp_path / "again") == contents(pack)
    assert pack_folder(shuffled, frames, SIZE, pack.parent) == pack


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
def test_a_killed_packing_leaves_only_whole_files_and_the_next_one_completes_it(
    frames: Path, annotations: Annotations, pack: Path, tmp_path: Path, delay: float
) -> None:
    folder = tmp_path / "pack"
    process = start_packing(annotations, frames, folder)
    while process.is_alive() and not (folder / packing.INDEX).exists():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    undisturbed = contents(pack)
    whole = {k: v for k, v in contents(folder).items() if not k.endswith(packing.PARTIAL)}
    assert whole.items() <= undisturbed.items()
    assert is_complete(folder) == (whole == undisturbed)
    pack_clips(annotations, frames, SIZE, folder, num_workers=0)
    assert contents(folder) == undisturbed
    assert is_complete(folder)


def test_a_second_process_waits_for_the_first_and_packs_nothing_twice(
    frames: Path, annotations: Annotations, pack: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pack"
    processes = [start_packing(annotations, frames, folder) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(folder) == contents(pack)


def test_a_resumed_packing_keeps_the_files_that_are_there(
    frames: Path, annotations: Annotations, pack: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pack"
    shutil.copytree(pack, folder)
    (folder / "000001.arrow").unlink()
    (folder / f"000001.arrow.77{packing.PARTIAL}").write_bytes(b"half")
    kept = (folder / "000000.arrow").stat().st_ino
    assert not is_complete(folder)
    pack_clips(annotations, frames, SIZE, folder, num_workers=1)
    assert contents(folder) == contents(pack)
    assert (folder / "000000.arrow").stat().st_ino == kept


def test_the_pack_is_named_by_what_it_holds(frames: Path, annotations: Annotations) -> None:
    def folder(a: Annotations, size: int = SIZE) -> Path:
        return pack_folder(a, frames, size, Path("cache"))

    def changed(digest: str = "d1", drop: int = 0) -> Annotations:
        splits = dict(annotations.splits)
        splits["train"] = splits["train"][drop:]
        return Annotations(annotations.categories, splits, digest)

    base = folder(annotations)
    assert folder(changed()) == base
    assert len({base, folder(changed("d2")), folder(changed(drop=1)), folder(changed(), 25)}) == 4


def test_without_a_digest_the_frames_themselves_name_the_pack(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", seed=0)
    clips = [Clip("clip", (0, 5), 0, "")]
    annotations = Annotations({"a": 0}, {"train": clips, "val": [], "test": []})
    before = pack_folder(annotations, tmp_path, SIZE, tmp_path)
    assert pack_folder(annotations, tmp_path, SIZE, tmp_path) == before
    shutil.copy(tmp_path / "clip" / "frame01.jpg", tmp_path / "clip" / "frame00.jpg")
    assert pack_folder(annotations, tmp_path, SIZE, tmp_path) != before


def test_a_bad_frame_stops_the_packing_with_its_name(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames" / "clip", seed=0)
    bad = tmp_path / "frames" / "clip" / "frame03.jpg"
    bad.write_bytes(b"broken")
    clips = [Clip("clip", (0, 5), 0, "")]
    annotations = Annotations({"a": 0}, {"train": clips, "val": [], "test": []}, "d")
    with pytest.raises(UserError, match=rf"^data_path: {bad} is no image[^\n]*$"):
        pack_clips(annotations, tmp_path / "frames", SIZE, tmp_path / "pack", num_workers=1)
    assert not is_complete(tmp_path / "pack")


def test_a_damaged_pack_names_the_file(
    annotations: Annotations, pack: Path, tmp_path: Path
) -> None:
    shutil.copytree(pack, tmp_path / "pack")
    damaged = tmp_path / "pack" / "000000.arrow"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    first = min(annotations.clips, key=lambda clip: clip.video)
    with pytest.raises(UserError, match=r"^frame_cache: .*000000\.arrow cannot be read[^\n]*$"):
        PackedFrames(tmp_path / "pack")(first, [0])


def test_the_size_is_estimated_within_a_tenth(
    frames: Path, annotations: Annotations, pack: Path
) -> None:
    true = sum(path.stat().st_size for path in pack.glob("*.arrow"))
    # Arrow adds about 300 bytes a clip, which are a few percent of clips as small as these.
    assert estimated_bytes(annotations, frames, SIZE) == pytest.approx(true, rel=0.1)


Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize(
    ("mode", "num_epochs", "room", "packs", "said"),
    [
        ("none", 9, 9.0, False, ""),
        ("auto", 9, 9.0, True, "packing once"),
        ("auto", 9, 1.5, False, "none, since packing needs"),
        ("auto", 1, 9.0, False, "one epoch"),
        ("packed", 1, 1.5, True, "packing once"),
    ],
)
def test_auto_packs_what_fits_the_disk_twice_and_says_what_it_does(
    frames: Path,
    annotations: Annotations,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    num_epochs: int,
    room: float,
    packs: bool,
    said: str,
) -> None:
    free = round(room * estimated_bytes(annotations, frames, SIZE))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(free, 0, free))
    config = Config(
        data_path=str(frames),
        resize_size=SIZE,
        num_epochs=num_epochs,
        frame_cache=mode,
        cache_dir=str(tmp_path / "cache"),
        num_workers=0,
    )
    folder = settle_frame_cache(config, annotations)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == bool(said)
    assert said in "".join(lines)
    assert (folder is not None) == packs
    if folder is not None:
        assert settle_frame_cache(config, annotations) == folder
        assert "used again" in capsys.readouterr().out


def test_packing_is_refused_where_the_disk_is_too_small(
    frames: Path, annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 0, 10))
    config = Config(
        data_path=str(frames), resize_size=SIZE, frame_cache="packed", cache_dir=str(tmp_path)
    )
    with pytest.raises(UserError, match=r"^frame_cache: packing needs .* GB"):
        settle_frame_cache(config, annotations)
