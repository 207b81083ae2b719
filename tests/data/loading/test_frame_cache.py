"""The frame cache: the same pixels, whole files after a kill, a name that follows the content."""

import hashlib
import multiprocessing
import os
import resource
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tqdm import tqdm

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import Annotations, Clip
from k400tiny_lib.data.loading import frame_origins
from k400tiny_lib.data.loading.dataset import ClipDataset
from k400tiny_lib.data.loading.frame_cache import (
    CLIPS_PER_FILE,
    INDEX,
    CachedFrames,
    cache_folder,
    estimated_bytes,
    is_complete,
    map_file,
    resolve_frame_cache,
    write_cache,
)
from k400tiny_lib.data.loading.loader import batches, make_loader, worker_count
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.errors import UserError
from tests.conftest import NUM_FRAMES, write_clip

SIZE = 24
NUM_CLIPS = 3 * CLIPS_PER_FILE + 1


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source") / "frames"
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
def cache(frames: Path, annotations: Annotations, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = cache_folder(annotations, frames, SIZE, tmp_path_factory.mktemp("cache"))
    write_cache(annotations, frames, SIZE, folder, num_workers=2)
    return folder


def start_writing(
    annotations: Annotations, frames: Path, folder: Path
) -> multiprocessing.process.BaseProcess:
    def write() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        # Forks share tqdm's lock, which a killed process would never release.
        tqdm.set_lock(threading.RLock())
        write_cache(annotations, frames, SIZE, folder, num_workers=0)

    process = multiprocessing.get_context("fork").Process(target=write)
    process.start()
    return process


def contents(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != ".lock"
    }


def test_cached_frames_are_the_decoded_ones(
    frames: Path, annotations: Annotations, cache: Path
) -> None:
    read, cached = ImageFiles(frames, SIZE), CachedFrames(cache)
    for clip in annotations.clips:
        offsets = [0, 2, 2, clip.num_frames - 1]
        assert torch.equal(cached(clip, offsets), read(clip, offsets))


def test_training_from_the_cache_sees_the_pixels_of_training_from_files(
    frames: Path, annotations: Annotations, cache: Path
) -> None:
    def dataset(read: ImageFiles | CachedFrames) -> ClipDataset:
        return ClipDataset(
            annotations.splits["train"],
            read,
            clip_len=4,
            crop_size=20,
            training=True,
            augmentation="strong",
        )

    files, cached = dataset(ImageFiles(frames, SIZE)), dataset(CachedFrames(cache))
    for position in (0, 7, 20):
        assert torch.equal(files[position][0], cached[position][0])


def test_a_thread_that_reads_ahead_changes_no_pixel_and_no_randomness(
    cache: Path, annotations: Annotations
) -> None:
    clips = list(annotations.clips)
    dataset = ClipDataset(
        clips, CachedFrames(cache), clip_len=4, crop_size=24, training=True, augmentation="flip"
    )
    assert worker_count("auto", 1, dataset) == 0
    results = []
    for num_workers in (0, 1):
        loader = make_loader(dataset, range(len(clips)), batch_size=4, num_workers=num_workers)
        torch.manual_seed(3)
        results.append([(batch[0], torch.rand(2)) for batch in batches(loader)])
    for (ahead, drawn), (from_worker, drawn_with_worker) in zip(*results, strict=True):
        assert torch.equal(ahead, from_worker)
        assert torch.equal(drawn, drawn_with_worker)


def test_only_light_clips_are_read_without_worker_processes(
    frames: Path, cache: Path, annotations: Annotations
) -> None:
    def light(read: ImageFiles | CachedFrames, augmentation: str, training: bool) -> bool:
        return ClipDataset(
            list(annotations.clips),
            read,
            clip_len=4,
            crop_size=24,
            training=training,
            augmentation=augmentation,
        ).is_light

    cached, files = CachedFrames(cache), ImageFiles(frames, SIZE)
    assert light(cached, "none", True)
    assert light(cached, "flip", True)
    assert light(cached, "strong", False)
    assert not light(cached, "standard", True)
    assert not light(cached, "strong", True)
    assert not light(files, "none", True)


def test_a_damaged_cache_is_one_line_from_the_thread_that_reads_ahead(
    cache: Path, annotations: Annotations, tmp_path: Path
) -> None:
    copy = tmp_path / "cache"
    shutil.copytree(cache, copy)
    (copy / "000000.safetensors").write_bytes(b"broken")
    dataset = ClipDataset(list(annotations.clips), CachedFrames(copy), clip_len=4, crop_size=24)
    loader = make_loader(dataset, range(len(dataset)), batch_size=1, num_workers=0)
    with pytest.raises(UserError, match=r"^frame_cache: .*/000000\.safetensors cannot be read.*$"):
        list(batches(loader))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of mappings")
def test_frames_are_mapped_not_read(cache: Path) -> None:
    path = cache / "000000.safetensors"
    clips = map_file(path)
    maps = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in maps if line.endswith(str(path))]
    assert len(clips) == CLIPS_PER_FILE
    for clip in clips.values():
        address = clip.ctypes.data
        assert any(int(start, 16) < address < int(end, 16) for start, end in ranges)


def test_neither_the_number_of_processes_nor_the_order_of_clips_changes_a_byte(
    frames: Path, annotations: Annotations, cache: Path, tmp_path: Path
) -> None:
    splits = {name: clips[::-1] for name, clips in annotations.splits.items()}
    shuffled = Annotations(annotations.categories, splits, annotations.data_digest)
    write_cache(shuffled, frames, SIZE, tmp_path / "again", num_workers=0)
    assert contents(tmp_path / "again") == contents(cache)
    assert cache_folder(shuffled, frames, SIZE, cache.parent) == cache


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.3])
def test_a_killed_writer_leaves_only_whole_files_and_the_next_one_completes_them(
    frames: Path, annotations: Annotations, cache: Path, tmp_path: Path, delay: float
) -> None:
    folder = tmp_path / "cache"
    process = start_writing(annotations, frames, folder)
    while process.is_alive() and not (folder / INDEX).exists():
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.join()
    undisturbed = contents(cache)
    whole = {k: v for k, v in contents(folder).items() if not k.startswith(".")}
    assert whole.items() <= undisturbed.items()
    assert is_complete(folder) == (whole == undisturbed)
    write_cache(annotations, frames, SIZE, folder, num_workers=0)
    assert contents(folder) == undisturbed
    assert is_complete(folder)


def test_a_second_process_waits_for_the_first_and_writes_nothing_twice(
    frames: Path, annotations: Annotations, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    processes = [start_writing(annotations, frames, folder) for _ in range(2)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert contents(folder) == contents(cache)


def test_files_that_are_there_are_kept(
    frames: Path, annotations: Annotations, cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    (folder / "000001.safetensors").unlink()
    (folder / ".000001.safetensors.part").write_bytes(b"half")
    kept = (folder / "000000.safetensors").stat().st_ino
    assert not is_complete(folder)
    write_cache(annotations, frames, SIZE, folder, num_workers=1)
    assert contents(folder) == contents(cache)
    assert (folder / "000000.safetensors").stat().st_ino == kept


def test_the_folder_is_named_by_the_content(frames: Path, annotations: Annotations) -> None:
    def folder(a: Annotations, size: int = SIZE) -> Path:
        return cache_folder(a, frames, size, Path("cache"))

    def changed(digest: str = "d1", drop: int = 0) -> Annotations:
        splits = dict(annotations.splits)
        splits["train"] = splits["train"][drop:]
        return Annotations(annotations.categories, splits, digest)

    base = folder(annotations)
    assert folder(changed()) == base
    assert len({base, folder(changed("d2")), folder(changed(drop=1)), folder(changed(), 25)}) == 4


def test_without_a_data_digest_the_folder_is_named_by_the_frames(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", seed=0)
    clips = [Clip("clip", (0, 5), 0, "")]
    annotations = Annotations({"a": 0}, {"train": clips, "val": [], "test": []})
    before = cache_folder(annotations, tmp_path, SIZE, tmp_path)
    assert cache_folder(annotations, tmp_path, SIZE, tmp_path) == before
    shutil.copy(tmp_path / "clip" / "frame01.jpg", tmp_path / "clip" / "frame00.jpg")
    assert cache_folder(annotations, tmp_path, SIZE, tmp_path) != before


def test_a_bad_frame_stops_the_writer_and_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "frames" / "clip", seed=0)
    bad = tmp_path / "frames" / "clip" / "frame03.jpg"
    bad.write_bytes(b"broken")
    clips = [Clip("clip", (0, 5), 0, "")]
    annotations = Annotations({"a": 0}, {"train": clips, "val": [], "test": []}, "d")
    with pytest.raises(UserError, match=rf"^data_path: {bad} is no image[^\n]*$"):
        write_cache(annotations, tmp_path / "frames", SIZE, tmp_path / "cache", num_workers=1)
    assert not is_complete(tmp_path / "cache")


def test_others_may_read_the_cache_as_they_may_read_any_file(cache: Path) -> None:
    plain = cache.parent / "plain"
    plain.touch()
    assert {path.stat().st_mode for path in cache.glob("0*")} == {plain.stat().st_mode}


def test_a_cache_dir_that_cannot_be_written_is_one_line(
    frames: Path, annotations: Annotations, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^cache_dir: .* written to: Not a directory\. Need"):
        write_cache(annotations, frames, SIZE, tmp_path / "file" / "cache", num_workers=0)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_full_disk_is_one_line_whoever_writes(
    frames: Path, annotations: Annotations, tmp_path: Path, num_workers: int
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"^cache_dir: .*safetensors cannot be written to: "):
            write_cache(annotations, frames, SIZE, tmp_path / "cache", num_workers)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "cache").glob("*0*"))


def test_a_damaged_file_is_named(annotations: Annotations, cache: Path, tmp_path: Path) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    damaged = tmp_path / "cache" / "000000.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-200])
    first = min(annotations.clips, key=lambda clip: clip.video)
    with pytest.raises(
        UserError, match=r"^frame_cache: .*000000\.safetensors cannot be read[^\n]*$"
    ):
        CachedFrames(tmp_path / "cache")(first, [0])


def test_the_size_is_estimated_within_a_tenth(
    frames: Path, annotations: Annotations, cache: Path
) -> None:
    true = sum(path.stat().st_size for path in cache.glob("*.safetensors"))
    # The header takes about 100 bytes a clip, a percent or two of clips as small as these.
    assert estimated_bytes(annotations, frames, SIZE) == pytest.approx(true, rel=0.1)


@pytest.mark.parametrize(
    ("mode", "num_epochs", "room", "writes", "printed"),
    [
        ("none", 9, 9.0, False, ""),
        ("auto", 9, 9.0, True, "decoding all clips once"),
        ("auto", 9, 1.5, False, "none, since it needs"),
        ("auto", 1, 9.0, False, "one epoch"),
        ("packed", 1, 1.5, True, "decoding all clips once"),
    ],
)
def test_auto_caches_what_fits_the_disk_twice_and_prints_the_decision(
    frames: Path,
    annotations: Annotations,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mode: str,
    num_epochs: int,
    room: float,
    writes: bool,
    printed: str,
) -> None:
    free = round(room * estimated_bytes(annotations, frames, SIZE))
    config = Config(
        data_path=str(frames),
        resize_size=SIZE,
        num_epochs=num_epochs,
        frame_cache=mode,
        cache_dir=str(tmp_path / "cache"),
        num_workers=0,
    )
    folder = resolve_frame_cache(config, annotations, free)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == bool(printed)
    assert printed in "".join(lines)
    assert (folder is not None) == writes
    if folder is not None:
        assert resolve_frame_cache(config, annotations) == folder
        assert "used again" in capsys.readouterr().out


def test_the_cache_is_refused_if_the_disk_is_too_small(
    frames: Path, annotations: Annotations, tmp_path: Path
) -> None:
    config = Config(
        data_path=str(frames), resize_size=SIZE, frame_cache="packed", cache_dir=str(tmp_path)
    )
    with pytest.raises(UserError, match=r"^frame_cache: needs .* GB"):
        resolve_frame_cache(config, annotations, free_bytes=10)


def packed(frames: Path, cache_dir: Path, annotations: Annotations) -> Path:
    settings = Config(
        data_path=str(frames),
        resize_size=SIZE,
        crop_size=SIZE,
        frame_cache="packed",
        cache_dir=str(cache_dir),
        num_workers=0,
    )
    folder = resolve_frame_cache(settings, annotations)
    assert folder
    return folder


@pytest.mark.parametrize("keep_size", [False, True])
def test_frames_that_changed_since_they_were_packed_are_packed_again(
    frames: Path,
    annotations: Annotations,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keep_size: bool,
) -> None:
    data = shutil.copytree(frames, tmp_path / "frames")
    clip = annotations.splits["train"][0]
    before = packed(data, tmp_path / "cache", annotations)
    assert packed(data, tmp_path / "cache", annotations) == before
    image = data / clip.video / "frame03.jpg"
    original, times = image.read_bytes(), image.stat()
    if keep_size:  # after the end of a JPEG there may be anything
        others = [data / c.video / "frame03.jpg" for c in annotations.splits["train"][2::2]]
        other = min(others, key=lambda path: path.stat().st_size).read_bytes()
        image.write_bytes(other + bytes(len(original) - len(other)))
    else:
        cv2.imwrite(str(image), np.zeros_like(cv2.imread(str(image))))
    capsys.readouterr()
    after = packed(data, tmp_path / "cache", annotations)
    said = capsys.readouterr().out
    assert f"the frames of 1 clips have changed since they were packed, first {clip.video};" in said
    assert after != before
    read = ImageFiles(data, SIZE)
    assert torch.equal(CachedFrames(after)(clip, [0, 2]), read(clip, [0, 2]))
    # Back again: the first cache is right, which the content shows.
    image.write_bytes(original)
    os.utime(image, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    assert packed(data, tmp_path / "cache", annotations) == before


def test_a_copy_of_the_same_frames_uses_the_same_cache_and_is_read_once(
    frames: Path, annotations: Annotations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = packed(frames, tmp_path / "cache", annotations)
    copy = tmp_path / "copy"
    shutil.copytree(frames, copy, copy_function=shutil.copyfile)  # other times
    assert packed(copy, tmp_path / "cache", annotations) == before
    monkeypatch.setattr(frame_origins, "content_digests", None)
    assert packed(copy, tmp_path / "cache", annotations) == before
    assert packed(frames, tmp_path / "cache", annotations) == before


def test_a_cache_that_was_interrupted_is_not_completed_from_changed_frames(
    frames: Path, annotations: Annotations, tmp_path: Path
) -> None:
    data = shutil.copytree(frames, tmp_path / "frames")
    before = packed(data, tmp_path / "cache", annotations)
    next(before.glob("*.safetensors")).unlink()
    video = annotations.splits["train"][0].video
    (data / video / "frame03.jpg").write_bytes((data / video / "frame02.jpg").read_bytes())
    assert packed(data, tmp_path / "cache", annotations) != before
