"""Rows of a table and the files below data_path find one another, whatever is odd about either."""

import os
from pathlib import Path

import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import Source, open_source
from k400tiny_lib.data.sources.frame_folders import FrameFolders
from k400tiny_lib.data.sources.left_out import NO_ROW
from k400tiny_lib.data.sources.videos import Videos
from k400tiny_lib.errors import UserError
from tests.conftest import write_clip
from tests.helpers.videos import write_video


def opened(tmp_path: Path, *lines: str, **more: object) -> Source:
    path = tmp_path / "gt.csv"
    path.write_text("\n".join(lines) + "\n")
    config = Config(
        data_path=str(tmp_path / "in"), gt_csv=str(path), output_dir=str(tmp_path / "out"), **more
    )
    source = open_source(config)
    source.check()
    return source


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


@pytest.mark.parametrize("header", ["folder_name,label", "file,label", "path,label", "id,label"])
def test_what_lies_at_the_names_decides_between_frames_and_videos(
    tmp_path: Path, header: str
) -> None:
    for number in range(3):
        write_clip(tmp_path / "in" / "some" / f"c{number}", seed=number)
    rows = [f"some/c{number},x" for number in range(3)]
    source = opened(tmp_path, header, *rows)
    assert isinstance(source, FrameFolders)
    assert source.ground_truth.table["folder_name"].tolist() == ["some/c0", "some/c1", "some/c2"]
    # Names that are not quite right, where there are no videos at all.
    source = opened(tmp_path, header, *(f"some/C{number},x" for number in range(3)))
    assert source.ground_truth.table["folder_name"].tolist() == ["some/c0", "some/c1", "some/c2"]
    for number in range(3):
        write_video(tmp_path / "in" / "films" / f"c{number}.mp4")
    source = opened(tmp_path, header, *(f"films/c{number}.mp4,x" for number in range(3)))
    assert isinstance(source, Videos)
    assert source.ground_truth.table["file"].str.startswith("films/c").all()


def test_frame_folders_are_found_like_videos(tmp_path: Path) -> None:
    for name in ("run/a", "run/B", " odd ", "jump/c"):
        write_clip(tmp_path / "in" / name, seed=len(name))
    rows = ["in/run/a,x", "run\\b,x", f"{tmp_path}/in/jump/c,y", " odd ,y", "gone,y", "../in,y"]
    source = opened(tmp_path, "folder_name,label", *rows)
    names = source.ground_truth.table["folder_name"].tolist()
    assert names == [" odd ", "jump/c", "run/B", "run/a"]
    assert {row.video: row.reason for row in source.ground_truth.dropped} == {
        "gone": "no such folder",
        "../in": "its name leaves data_path",
    }


def test_names_that_are_not_quite_right_are_noted_and_others_dropped_with_a_hint(
    tmp_path: Path,
) -> None:
    touch(tmp_path / "in", "run/a.mp4", "b.webm", "c.mp4", "d.mp4", "x/e.mp4", "y/e.mp4")
    rows = ["a,x", "b.mp4,x", "c.mp4,x", "dd.mp4,x", "e,x"]
    source = opened(tmp_path, "file,label", *rows)
    assert source.ground_truth.table["file"].tolist() == ["b.webm", "c.mp4", "run/a.mp4"]
    assert {row.video: row.reason for row in source.ground_truth.dropped} == {
        "dd": "no such video (the nearest is 'd.mp4')",
        "e": "no such video; 'x/e.mp4' and 'y/e.mp4' are both like it",
    }
    assert any("2 name(s) in gt_csv are not quite" in note for note in source.ground_truth.notes)


def test_rows_in_folders_that_cannot_be_read_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a/0.mp4", "a/1.mp4", "b/locked/2.mp4", "b/locked/3.mp4"]
    touch(tmp_path / "in", *names, "c.mp4")
    os.mkfifo(tmp_path / "in" / "a" / "pipe.mp4")
    scandir = os.scandir

    def refuse(path: str) -> object:  # as without permission, which root has
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    rows = [f"{name},x" for name in (*names, "a/pipe.mp4")]
    truth = opened(tmp_path, "file,label", *rows).ground_truth
    problem = "the folder b/locked cannot be read: Permission denied"
    assert {row.video: row.reason for row in truth.dropped} == {
        "b/locked/2": problem,
        "b/locked/3": problem,
        "a/pipe": "no regular file but a named pipe",
    }
    assert truth.left_out.keys() == {"c.mp4", "b/locked"}


@pytest.mark.parametrize("header", ["folder_name,label", "file,label", "path,label"])
def test_impossible_names_are_no_file(tmp_path: Path, header: str) -> None:
    names = [f"c{number}" for number in range(4)]
    for number, name in enumerate(names):
        write_clip(tmp_path / "in" / name, seed=number)
    rows = [f"{name},x" for name in (*names, "x" * 300, "c0/frame00.jpg/x")]
    truth = opened(tmp_path, header, *rows).ground_truth
    assert truth.table["folder_name"].tolist() == names
    assert [row.reason for row in truth.dropped] == ["no such folder"] * 2


def test_frames_of_a_named_folder_are_not_left_out_whatever_is_below_it(tmp_path: Path) -> None:
    write_clip(tmp_path / "in" / "a", seed=0, num_frames=3)
    write_clip(tmp_path / "in" / "a" / "more", seed=1, num_frames=9)
    truth = opened(tmp_path, "folder_name,label", "a,x").ground_truth
    assert truth.table["folder_name"].tolist() == ["a"]
    assert truth.left_out == {"a/more": NO_ROW}


def test_two_rows_of_one_video_are_one_clip(tmp_path: Path) -> None:
    touch(tmp_path / "in", "run/a.mp4", "b.mp4")
    truth = opened(tmp_path, "file,label", "run/a.mp4,x", "run\\a,x", "b.mp4,y").ground_truth
    assert truth.table["folder_name"].tolist() == ["b", "run/a"]
    assert truth.duplicates == ["run/a"]


def test_the_list_of_kinetics_takes_the_better_of_two_files(tmp_path: Path) -> None:
    touch(
        tmp_path / "in",
        "train/aaaaaaaaaaa_000000_000010.mp4.mkv",
        "bbbbbbbbbbb_000000_000010.mp4",
        "replacement_for_corrupted_k400/bbbbbbbbbbb_000000_000010.mp4",
        "zz/ccccccccccc_000000_000010.mp4",
        "ddddddddddd_000001_000011.mp4",
    )
    (tmp_path / "in" / "ccccccccccc_000000_000010.mp4").touch()  # empty
    rows = [f"x,{letter * 11},0.0,10.0" for letter in "abc"]
    truth = opened(tmp_path, "#label,youtube_id,time_start,time_end", *rows).ground_truth
    assert truth.table["file"].tolist() == [
        "train/aaaaaaaaaaa_000000_000010.mp4.mkv",
        "replacement_for_corrupted_k400/bbbbbbbbbbb_000000_000010.mp4",
        "zz/ccccccccccc_000000_000010.mp4",
    ]
    assert any("2 clips have several files" in note for note in truth.notes)


def test_a_list_of_kinetics_without_any_of_its_videos_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "in", "other.mp4")
    with pytest.raises(
        UserError, match=r"2 of 2 videos do not exist in .*, first 'aa_000000_000010"
    ):
        opened(tmp_path, "label,youtube_id,time_start,time_end", "x,aa,0,10", "x,bb,0,10")


def test_folders_that_do_not_belong_to_the_table_are_refused(tmp_path: Path) -> None:
    write_clip(tmp_path / "in" / "a", seed=0)
    with pytest.raises(UserError, match=r"2 of 3 folders do not exist in .*, first 'b'"):
        opened(tmp_path, "folder_name,label", "a,x", "b,x", "c,x")


def test_the_digest_of_videos_follows_rows_files_and_the_directory(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.mp4", "b.mp4")
    rows = ["a.mp4,x", "b.mp4,y", "c.mp4,y", ",x"]
    source = opened(tmp_path, "file,label", *rows)
    assert {row.video: row.reason for row in source.ground_truth.dropped} == {
        "c": "no such video (the nearest is 'b.mp4')",
        ".": "it names no file",
    }
    digests = {source.digest()}
    (tmp_path / "in" / "d.mp4").mkdir()  # an empty folder, which is left out
    digests.add(opened(tmp_path, "file,label", *rows).digest())
    os.mkfifo(tmp_path / "in" / "c.mp4")  # is dropped for another reason
    digests.add(opened(tmp_path, "file,label", *rows).digest())
    config = source.config.replace(output_dir=str(tmp_path / "elsewhere"))
    digests.add(open_source(config).digest())  # where later steps would read the frames
    assert len(digests) == 4


def test_the_digest_of_frame_folders_follows_rows_and_what_is_left_out(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        write_clip(tmp_path / "in" / name, seed=number)
    source = opened(tmp_path, "folder_name,label", "A,x", "b,y")
    assert any("1 name(s) in gt_csv are not quite" in note for note in source.ground_truth.notes)
    digests = {source.digest()}
    digests.add(opened(tmp_path, "folder_name,label", "A,x", "b,x").digest())
    (tmp_path / "in" / "c").mkdir()
    digests.add(opened(tmp_path, "folder_name,label", "A,x", "b,x").digest())
    assert len(digests) == 3


def test_an_unknown_header_is_refused_with_the_line_and_the_likely_cause(tmp_path: Path) -> None:
    touch(tmp_path / "in", "a.mp4")
    message = r"no column .* \(found: file\^label; line 2: 'a.mp4\^x'\). Separated by '\^'\?"
    with pytest.raises(UserError, match=message):
        opened(tmp_path, "file^label", "a.mp4^x")
    no_header = r"no column 'folder_name' or 'file' in gt.csv \(found: {}\). Has it no header\?"
    with pytest.raises(UserError, match=no_header.format("first; line 2: 'second'")):
        opened(tmp_path, "first", "second")
    # Several labels per video, and names that need not be those of videos.
    with pytest.raises(UserError, match=no_header.format("a.mp4 1 3 5; line 2: 'a.mp4 1 3 5'")):
        opened(tmp_path, "a.mp4 1 3 5", "a.mp4 1 3 5")
    with pytest.raises(UserError, match=no_header.format("7, Swiping Left; line 2: '8;Stop'")):
        opened(tmp_path, "7;Swiping Left", "8;Stop")
    with pytest.raises(UserError, match=no_header.format(r"a.mp4, x y, 3; line 2: 'a.mp4\\t.*")):
        opened(tmp_path, "a.mp4\tx y\t3", "a.mp4\tx y\t3")
    # The columns are those of the file, without the names that we give them.
    with pytest.raises(UserError, match=r"no column 'label' in gt.csv \(found: filename, run; "):
        opened(tmp_path, "filename,run", "a.mp4,1")


@pytest.mark.parametrize("workers", [1, 2])
def test_clips_never_harm_one_another_whatever_ran_before(tmp_path: Path, workers: int) -> None:
    files = ["a.mp4", "a/b.mp4", "a/c.mp4", "d.mp4", "d.avi", "e.mp4", "e .mp4"]
    for number, name in enumerate(files):
        write_video(tmp_path / "in" / name, 4 + number)
    alone = opened(tmp_path, "file,label", "a.mp4,x", decode_workers=workers)
    assert alone.bring() == {}
    assert [path.name for path in alone.directory.glob("[!.]*")] == ["a"]
    rows = [f"{name},{'xyz'[number % 3]}" for number, name in enumerate(files)]
    source = opened(tmp_path, "file,label", *rows, decode_workers=workers)
    assert source.bring() == {}
    names = source.ground_truth.table["folder_name"].tolist()
    assert names == ["a.mp4", "a/b", "a/c", "d.avi", "d.mp4", "e .mp4", "e.mp4"]
    assert all(len(list((source.directory / name).glob("*.jpg"))) == 40 for name in names)
    # The other way around: `a` is written where the folders of other clips are.
    write_video(tmp_path / "in" / "a.mp4", 30)
    assert opened(tmp_path, "file,label", "a.mp4,x", decode_workers=workers).bring() == {}
    assert len(list((source.directory / "a").glob("*.jpg"))) == 40
    again = opened(tmp_path, "file,label", *rows, decode_workers=workers)
    assert again.bring() == {}
    config = again.config.replace(group_by="none", on_rare_class="train")
    assert prepare(config, again).report["num_dropped"] == 0
