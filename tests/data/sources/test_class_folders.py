"""Class folders as people have them: with splits, deeper folders, strays, our own output."""

import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation.prepare import Prepared, prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.data.sources.ground_truth import GroundTruth
from k400tiny_lib.data.sources.left_out import NO_ROW
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.listing import NOT_A_CLIP, NOT_UTF8, UNKNOWN_SUFFIX
from k400tiny_lib.media.own_output import MARK
from k400tiny_lib.tracking.data_log import describe
from tests.conftest import write_clip
from tests.helpers.videos import write_video


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def truth_of(data_path: Path | str, gt_csv: str = "none", **more: object) -> GroundTruth:
    return open_source(Config(data_path=str(data_path), gt_csv=gt_csv, **more)).ground_truth


def rows(truth: GroundTruth) -> list[tuple[str, str, str]]:
    table = truth.table[["folder_name", "label", "split"]]
    return [tuple(row) for row in table.to_numpy()]


def as_video(name: str) -> list[str]:
    return [f"{name}.mp4"]


def as_frames(name: str) -> list[str]:
    return [f"{name}/frame0.jpg", f"{name}/frame1.jpg"]


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("files_of", [as_video, as_frames])
def test_folders_of_splits_are_official_splits(
    files_of: Callable[[str], list[str]],
    is_remote: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    clips = ["Train/run/0", "Train/sit/0", "VALID/run/0", "VALID/sit/7", "testing/run/1"]
    names = [name for clip in clips for name in files_of(clip)]
    root = touch(tmp_path / "in", *names, "lists/split.txt")
    source: Path | str = root
    if is_remote:
        source = f"memory://splits/{files_of.__name__}"
        fsspec.filesystem("memory").put(str(root), source, recursive=True)
    truth = truth_of(source)
    assert rows(truth) == [
        ("Train/run/0", "run", "train"),
        ("Train/sit/0", "sit", "train"),
        ("VALID/run/0", "run", "val"),  # as Train/run/0 in its folder, but another clip
        ("VALID/sit/7", "sit", "val"),
        ("testing/run/1", "run", "test"),
    ]
    assert truth.left_out == {"lists/split.txt": NOT_A_CLIP}
    assert {split for _, _, split in rows(truth_of(source, use_official_splits=False))} == {""}


def test_a_few_clips_next_to_splits_are_left_out_and_more_are_refused(tmp_path: Path) -> None:
    clips = [f"{split}/{label}/0.mp4" for split in ("train", "val", "test") for label in "xy"]
    root = touch(tmp_path, *clips, "docs/howto.mp4", "intro.mp4")
    truth = truth_of(root)
    assert len(truth.table) == 6
    assert set(truth.table["split"]) == set(SPLITS)
    reason = "in no folder of a split"
    assert truth.left_out == {"docs/howto.mp4": reason, "intro.mp4": reason}
    touch(root, "extra/x/1.mp4", "extra/y/1.mp4")
    with pytest.raises(UserError, match=r"folders of splits .* others, first 'docs/howto.mp4'"):
        truth_of(root)


def test_classes_with_names_of_splits_among_others_are_classes(tmp_path: Path) -> None:
    root = touch(tmp_path, "train/0.mp4", "plane/0.mp4", "plane/deep/1.mp4")
    assert {label for _, label, _ in rows(truth_of(root))} == {"train", "plane"}
    root = touch(tmp_path / "c", "train/0.mp4", "train/deep/1.mp4")
    assert {label for _, label, _ in rows(truth_of(root))} == {"train"}
    root = touch(tmp_path / "b", "train/0.mp4", "test/0.mp4")
    with pytest.raises(UserError, match=r"holds splits without class folders in them, first 'test"):
        truth_of(root)


@pytest.mark.parametrize("files_of", [as_video, as_frames])
def test_clips_at_any_depth_below_a_class_are_its_clips(
    files_of: Callable[[str], list[str]], tmp_path: Path
) -> None:
    names = ["run/0", "run/anna/0", "run/anna/monday/0", "sit/berta/0", "sit/berta/1"]
    truth = truth_of(touch(tmp_path, *(file for name in names for file in files_of(name))))
    expected = [(name, name.partition("/")[0], "") for name in sorted(names)]
    assert rows(truth) == expected


def test_a_linked_class_and_a_linked_root_are_read(tmp_path: Path) -> None:
    touch(tmp_path / "store", "x/0.mp4", "x/1.mp4")
    root = touch(tmp_path / "in", "y/0.mp4")
    (root / "x").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "link").symlink_to(root)
    assert [name for name, *_ in rows(truth_of(tmp_path / "link"))] == ["x/0", "x/1", "y/0"]
    gt = tmp_path / "gt.csv"
    gt.write_text("file,label\nx/0.mp4,x\ny/0.mp4,y\n")
    truth = truth_of(root, str(gt))
    assert [name for name, *_ in rows(truth)] == ["x/0", "y/0"]
    assert truth.left_out == {"x/1.mp4": NO_ROW}


def test_a_few_strays_are_left_out_and_a_mixture_is_refused_naming_both(tmp_path: Path) -> None:
    videos = [f"{label}/{number}.mp4" for label in "xy" for number in range(3)]
    root = touch(tmp_path, *videos, "x/thumbs/0.jpg", "docs/1.png", "x/0.jpg", "x/b.xyz", "top.mp4")
    truth = truth_of(root)
    assert len(truth.table) == 6
    assert truth.left_out == {
        "docs": "in no class folder",
        "top.mp4": "in no class folder",
        "x/0.jpg": NOT_A_CLIP,
        "x/b.xyz": UNKNOWN_SUFFIX,
        "x/thumbs": "a folder of pictures among videos",
    }
    touch(root, *as_frames("y/a"), *as_frames("y/b"))
    with pytest.raises(UserError, match=r"6 and 3, first 'x/0.mp4' and 'x/thumbs'"):
        truth_of(root)


def test_clips_that_cannot_be_read_are_dropped_and_the_others_kept(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/0.mp4", "x/1.mp4", "y/0.mp4")
    os.mkfifo(root / "y" / "1.mp4")
    Path(os.fsdecode(os.fsencode(root) + b"/y/caf\xe9.mp4")).touch()
    truth = truth_of(root)
    assert [name for name, *_ in rows(truth)] == ["x/0", "x/1", "y/0"]
    assert {row.video: (row.reason, row.labels) for row in truth.dropped} == {
        "y/1.mp4": ("no regular file but a named pipe", ("y",)),
        r"y/caf\xe9.mp4": (NOT_UTF8, ("y",)),
    }
    # A CSV may be meant for a part of the directory, so there they are left out.
    gt = tmp_path / "gt.csv"
    gt.write_text("file,label\nx/0.mp4,x\ny/0.mp4,y\n")
    truth = truth_of(root, str(gt))
    assert truth.dropped == []
    assert truth.left_out == {
        "x/1.mp4": NO_ROW,
        "y/1.mp4": "no regular file but a named pipe",
        r"y/caf\xe9.mp4": NOT_UTF8,
    }


@pytest.mark.parametrize("gt_csv", ["none", "gt.csv"])
def test_a_frame_that_cannot_be_read_drops_its_clip(tmp_path: Path, gt_csv: str) -> None:
    for name in ("x/0", "x/1", "y/0", "y/1"):
        touch(tmp_path / "in", *as_frames(name))
    root = tmp_path / "in"
    os.mkfifo(root / "x" / "0" / "frame2.jpg")
    Path(os.fsdecode(os.fsencode(root) + b"/y/0/caf\xe9.jpg")).touch()
    if gt_csv != "none":
        lines = (f"{name},{name},{name[0]}\n" for name in ("x/0", "x/1", "y/0"))
        (tmp_path / gt_csv).write_text("folder_name,youtube_id,label\n" + "".join(lines))
        gt_csv = str(tmp_path / gt_csv)
    truth = truth_of(root, gt_csv)
    assert {row.video: row.reason for row in truth.dropped} == {
        "x/0": "frame2.jpg is no regular file but a named pipe",
        "y/0": rf"caf\xe9.jpg: {NOT_UTF8}",
    }
    assert truth.left_out == ({} if gt_csv == "none" else {"y/1": NO_ROW})


def test_what_cannot_be_read_counts_for_its_class(tmp_path: Path) -> None:
    for root, folders in ((tmp_path / "a", [""]), (tmp_path / "b", ["train/", "val/", "test/"])):
        clips = [f"{folder}{label}/0.mp4" for folder in folders for label in "xy"]
        touch(root, *clips)
        os.mkfifo(root / folders[0] / "x" / "1.mp4")
        os.mkfifo(root / folders[0] / "2.mp4")
        (root / folders[0] / "z").symlink_to("nowhere")
        assert {row.video: row.labels for row in truth_of(root).dropped} == {
            f"{folders[0]}x/1.mp4": ("x",),
            f"{folders[0]}2.mp4": (),
            f"{folders[0]}z": ("z",),
        }


def test_names_of_any_bytes_in_data_path_itself_are_one_line(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    touch(folder, "x/0.mp4")
    with pytest.raises(UserError, match=r"^data_path: .*caf\\xe9 is not UTF-8"):
        truth_of(folder)


def prepare_once(config: Config) -> Prepared:
    source = open_source(config)
    source.check()
    return prepare(config, source)


@pytest.mark.parametrize(
    ("data_path", "output_dir"),
    [("data", "data"), ("data", "data/out"), ("data/in", "data"), (".", "data"), (".", ".")],
)
def test_the_second_run_reads_the_same_clips_wherever_the_output_goes(
    data_path: str, output_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        write_video(tmp_path / data_path / f"{'xy'[number % 2]}/{number}.avi", 3 + number)
    config = Config(data_path=data_path, output_dir=output_dir, decode_workers=1)
    first = prepare_once(config)
    source = open_source(config)
    digest = source.digest()
    assert (source.directory / MARK).exists()
    assert source.is_ready()
    second = prepare_once(config)
    assert first.annotations.to_json() == second.annotations.to_json()
    assert second.report["num_clips"] == 6
    assert second.report["num_left_out"] == second.report["num_dropped"] == 0
    touch(tmp_path / data_path, "x/notes.txt")  # changes no result
    assert open_source(config).digest() == digest
    # A run that is used again would not tell that this is left out.
    touch(tmp_path / data_path, "x/film.xyz")
    assert open_source(config).digest() != digest
    write_video(tmp_path / data_path / "y/new.avi", 20)
    assert not open_source(config).is_ready()
    assert prepare_once(config).report["num_clips"] == 7


def test_the_sample_next_to_class_folders_is_not_taken_for_clips(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/0.mp4", "y/0.mp4")
    clip = "sample-v1-seed0/k400tiny_images/smp_000000_000010"
    touch(root, *as_frames(clip), "sample-v1-seed0/k400tiny_ground_truth.csv")
    truth = truth_of(root)
    assert [name for name, *_ in rows(truth)] == ["x/0", "y/0"]
    assert truth.left_out == {}


def test_the_report_and_the_console_name_what_was_left_out(tmp_path: Path) -> None:
    splits = dict(zip(SPLITS, "xyz", strict=True))
    for number, split in enumerate(splits):
        for label in "ab":
            write_clip(tmp_path / "in" / split / label / "c1", seed=10 * number + ord(label))
    touch(tmp_path / "in", "train/a/b\nc.xyz", *(f"train/b/{n}.json" for n in range(3)))
    prepared = prepare_once(Config(data_path=str(tmp_path / "in"), output_dir=str(tmp_path)))
    assert prepared.report["num_left_out"] == 4
    assert prepared.report["left_out"]["train/a/b\nc.xyz"] == UNKNOWN_SUFFIX
    assert sorted(set(prepared.table["split"])) == sorted(SPLITS)
    lines = describe(prepared).splitlines()
    assert rf"left out 1 ({UNKNOWN_SUFFIX}): train/a/b\nc.xyz" in lines
    assert f"left out 3 ({NOT_A_CLIP}): 3 .json" in lines


def test_a_csv_in_data_path_is_not_left_out(tmp_path: Path) -> None:
    root = touch(tmp_path, "a.mp4", "b.mp4", "other.csv")
    (root / "gt.csv").write_text("file,label\na.mp4,x\nb.mp4,y\n")
    assert truth_of(root, str(root / "gt.csv")).left_out == {"other.csv": NOT_A_CLIP}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x/0.xyz", "y/0.xyz"], r"holds no clips in class folders .left out: 2, first 'x/0.xyz'"),
        (["a.mp4", "b.mp4", "x/0.mp4"], r"holds no clips in class folders .left out: 2"),
        (["frames-0a1b2c3d/x/0/.source"], "only what prepare_data made itself .frames-0a1b2c3d"),
    ],
)
def test_a_directory_without_class_folders_says_what_it_holds(
    names: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        truth_of(touch(tmp_path, *names))


def test_an_output_dir_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    root = touch(tmp_path, "in/x/0.mp4", "in/y/0.mp4", "file").joinpath("in")
    with pytest.raises(UserError, match=r"^output_dir: .*file"):
        prepare_once(Config(data_path=str(root), output_dir=str(tmp_path / "file")))
    with pytest.raises(UserError, match=r"^output_dir: .*file"):
        open_source(Config(data_path="sample", output_dir=str(tmp_path / "file"))).bring()


def test_a_single_class_is_noted_with_the_likely_cause(tmp_path: Path) -> None:
    for number in range(3):
        write_clip(tmp_path / "in" / "unzipped" / "xyz"[number] / "c", seed=number)
    prepared = prepare_once(Config(data_path=str(tmp_path / "in"), output_dir=str(tmp_path)))
    note = "all clips have the label 'unzipped': nothing can be learned. The folders directly in "
    assert any(line.startswith(note) for line in prepared.report["notes"])
