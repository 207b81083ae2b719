"""Each kind of source is recognized and read; each mistake is one line."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from k400tiny_lib.config import Config
from k400tiny_lib.data.sources.base import Source, open_source
from k400tiny_lib.data.sources.frame_folders import FrameFolders
from k400tiny_lib.data.sources.videos import Videos
from k400tiny_lib.errors import UserError
from tests.conftest import write_clip
from tests.helpers.videos import write_video


def read(data_path: str, gt_csv: str, group_by: str, use_official_splits: bool = True) -> Source:
    """Open a source and read its ground truth, which is where most mistakes are noticed."""
    source = open_source(
        Config(
            data_path=data_path,
            gt_csv=gt_csv,
            group_by=group_by,
            use_official_splits=use_official_splits,
        )
    )
    source.check()
    return source


def touch(root: Path, *names: str) -> str:
    """Files whose content does not matter: a source is read without looking into them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return str(root)


def csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def test_videos_with_columns_in_any_order_are_named_without_suffix(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4", "sub/b.AVI", "c.mp4", "c.mkv")
    gt = csv(
        tmp_path / "gt.csv",
        "label, extra ,youtube_id,file",
        "x,1,ida,a.mp4",
        "x,2,idb,sub/b.AVI",
        "y,3,idc,c.mp4",
        "y,4,idc,./c.mkv",
    )
    source = read(data, gt, "youtube_id")
    # Two videos that differ in the suffix alone keep it.
    assert source.ground_truth.table["folder_name"].tolist() == ["a", "c.mkv", "c.mp4", "sub/b"]
    assert source.ground_truth.table["group"].tolist() == ["ida", "idc", "idc", "idb"]
    assert source.ground_truth.table["file"].tolist() == ["a.mp4", "c.mkv", "c.mp4", "sub/b.AVI"]
    assert isinstance(source, Videos)
    assert source.ground_truth.notes == []


def test_videos_without_youtube_id_are_their_own_source_and_a_note_says_so(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4", "abcdefghijk_000001_000011.mp4")
    gt = csv(tmp_path / "gt.csv", "file,label", "a.mp4,x", "abcdefghijk_000001_000011.mp4,x")
    source = read(data, gt, "youtube_id")
    assert source.ground_truth.table["group"].tolist() == ["a", "abcdefghijk"]
    assert "no column youtube_id" in source.ground_truth.notes[0]


def test_the_list_of_kinetics_keeps_its_splits_and_drops_lost_videos(tmp_path: Path) -> None:
    data = touch(
        tmp_path / "in", "train/abc-_123456_000004_000014.mp4", "xyz45678901_000100_000110.webm"
    )
    gt = csv(
        tmp_path / "gt.csv",
        "label,youtube_id,time_start,time_end,split",
        "push up,abc-_123456,4,14,train",
        "push up,xyz45678901,100,110,validate",
        "push up,gone1234567,0,10,test",
        "push up,odd12345678,soon,10,test",
    )
    source = read(data, gt, "youtube_id")
    assert source.ground_truth.table[["folder_name", "group", "split"]].to_numpy().tolist() == [
        ["abc-_123456_000004_000014", "abc-_123456", "train"],
        ["xyz45678901_000100_000110", "xyz45678901", "val"],
    ]
    assert [(d.video, d.reason) for d in source.ground_truth.dropped] == [
        ("gone1234567_000000_000010", "no such video (YouTube loses some)"),
        ("odd12345678", "time_start or time_end is no number"),
    ]
    redrawn = read(data, gt, "youtube_id", use_official_splits=False)
    assert redrawn.ground_truth.table["split"].tolist() == ["", ""]


def test_class_folders_of_videos_or_clips_need_no_csv(tmp_path: Path) -> None:
    data = touch(tmp_path / "v", "push_up/a.mp4", "push_up/b.webm", "Yoga/c.mov", "Yoga/notes.txt")
    source = read(data, "none", "youtube_id")
    assert source.ground_truth.table[["folder_name", "label"]].to_numpy().tolist() == [
        ["Yoga/c", "yoga"],
        ["push_up/a", "push up"],
        ["push_up/b", "push up"],
    ]
    write_clip(tmp_path / "f" / "yoga" / "c1", seed=0)
    source = read(str(tmp_path / "f"), "none", "youtube_id")
    assert isinstance(source, FrameFolders)
    assert source.ground_truth.table["folder_name"].tolist() == ["yoga/c1"]


def test_a_csv_that_is_not_there_is_refused_with_the_layouts_that_it_may_have(
    tmp_path: Path,
) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(UserError, match=r"does not exist\. Needed: .*file,label\[,youtube_id\]"):
        read(str(tmp_path / "in"), str(tmp_path / "none.csv"), "youtube_id")


def test_rows_that_are_all_bad_are_all_named(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4", "b.mp4")
    gt = csv(tmp_path / "gt.csv", "file,label", "a.mp4, ", "b.mp4,")
    source = read(data, gt, "youtube_id")
    assert source.ground_truth.table.empty
    assert {d.video: d.reason for d in source.ground_truth.dropped} == dict.fromkeys(
        "ab", "it has no label"
    )


def test_a_video_outside_data_path_is_dropped(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4", "b.mp4", "c.mp4")
    touch(tmp_path, "secret.mp4")
    (tmp_path / "in" / "link.mp4").symlink_to(tmp_path / "secret.mp4")  # its owner's wish
    gt = csv(
        tmp_path / "gt.csv",
        "file,label",
        "a.mp4,x",
        "b.mp4,x",
        "c.mp4,x",
        "../secret.mp4,x",
        "link.mp4,x",
        "gone.mp4,x",
    )
    source = read(data, gt, "none")
    assert source.ground_truth.table["folder_name"].tolist() == ["a", "b", "c", "link"]
    assert {d.video: d.reason for d in source.ground_truth.dropped} == {
        "../secret": "its name leaves data_path",
        "gone": "no such video",
    }


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "film,label,c",
            "no column 'folder_name' or 'file' in gt.csv .found: film, label, c; line 2: 'a,b,c'",
        ),
        ("folder_name,sort,c", "no column 'label' in gt.csv .found: folder_name, sort, c"),
        ("file,sort,c", "no column 'label' in gt.csv .found: file, sort, c"),
        ("label,youtube_id,time_start", "no column 'time_end'"),
    ],
)
def test_an_unknown_layout_names_the_missing_column(
    tmp_path: Path, header: str, message: str
) -> None:
    gt = csv(tmp_path / "gt.csv", header, "a,b,c")
    with pytest.raises(UserError, match=f"^gt_csv: {message}") as error:
        read(str(tmp_path), gt, "youtube_id")
    assert "\n" not in str(error.value)


def test_csv_and_directory_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4")
    gt = csv(tmp_path / "gt.csv", "file,label", "a.mp4,x", "b.mp4,x", "c.mp4,x")
    with pytest.raises(UserError, match=r"2 of 3 videos do not exist in .*, first 'b'"):
        read(data, gt, "none")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (("clip/frame0.jpg",), "/clip holds frames, so it is a clip and no class"),
        (("a/x.mp4", "a/clip/frame0.jpg"), "holds both videos and clip folders"),
        (("x.mp4",), "holds no clips in class folders"),
        ((), "is not a directory"),
    ],
)
def test_a_directory_that_is_no_class_folders_is_refused(
    tmp_path: Path, files: tuple[str, ...], message: str
) -> None:
    data = touch(tmp_path / "in", *files)
    with pytest.raises(UserError, match=f"^data_path: .*{message}"):
        read(data, "none", "youtube_id")


def test_unknown_split_words_and_group_columns_are_named(tmp_path: Path) -> None:
    data = touch(tmp_path / "in", "a.mp4")
    gt = csv(tmp_path / "gt.csv", "file,label,split", "a.mp4,x,fold1")
    with pytest.raises(UserError, match=r"split 'fold1' in gt.csv is unknown"):
        read(data, gt, "none")
    with pytest.raises(UserError, match=r"^group_by: no column 'series'"):
        read(data, gt, "series", use_official_splits=False)


class CountingFileSystem(MemoryFileSystem):
    """Files in memory that count how often a directory is listed."""

    protocol = "counting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    listed: ClassVar[list[str]] = []

    def find(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self.listed.append(path)
        return super().find(path, *args, **kwargs)


def use_as_prepare_data_does(config: Config) -> None:
    source = open_source(config)
    source.check()
    source.is_ready()
    # Another process that decodes does not know the file system of this test.
    if not config.data_path.endswith("videos"):
        assert source.bring() == {}
        source.digest()
    assert len(source.ground_truth.table) == 2


def write_class_frames(root: Path) -> None:
    write_clip(root / "a" / "c1", seed=0)
    write_clip(root / "b" / "c2", seed=1)


def write_class_videos(root: Path) -> None:
    write_video(root / "a" / "c1.avi")
    write_video(root / "b" / "c2.avi", 9)


@pytest.mark.parametrize("write", [write_class_frames, write_class_videos])
def test_an_opened_source_lists_its_bucket_once(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # local copies go to .k400tiny
    fsspec.register_implementation("counting", CountingFileSystem, clobber=True)
    write(tmp_path / "in")
    uri = f"counting://bucket/{write.__name__}"
    fsspec.filesystem("counting").put(str(tmp_path / "in"), uri, recursive=True)
    CountingFileSystem.listed.clear()
    use_as_prepare_data_does(Config(data_path=uri, decode_workers=1))
    assert CountingFileSystem.listed == [uri]


@pytest.mark.parametrize("write", [write_class_frames, write_class_videos])
def test_an_opened_source_lists_its_directory_once(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "in"
    write(data)
    listed: list[str] = []
    scandir = os.scandir

    def counting(path: Any = ".") -> Any:
        listed.append(str(getattr(path, "path", path)))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    config = Config(data_path=str(data), output_dir=str(tmp_path / "out"), decode_workers=1)
    use_as_prepare_data_does(config)
    folders = [str(data), str(data / "a"), str(data / "b")]
    assert sorted(path for path in listed if path in folders) == folders
