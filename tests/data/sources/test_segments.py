"""Segments of long videos become clips: the right frames, one source per file, no row lost."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation import decoding_worker
from k400tiny_lib.data.preparation.prepare import prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.data.sources.videos import Videos
from k400tiny_lib.data.tables.segments import read_time
from k400tiny_lib.errors import UserError
from k400tiny_lib.media import video
from k400tiny_lib.media.frames import frame_files
from tests.conftest import write_clip
from tests.helpers.videos import write_video

FPS = 12  # of write_video, whose frame k is gray at 20 * k modulo 256


def csv(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def config_of(tmp_path: Path, *lines: str, **more: object) -> Config:
    return Config(
        data_path=str(tmp_path / "in"),
        gt_csv=csv(tmp_path / "gt.csv", *lines),
        output_dir=str(tmp_path / "out"),
        decode_workers=1,
        **more,
    )


def opened(config: Config) -> Videos:
    source = open_source(config)
    assert isinstance(source, Videos)
    return source


def grays(folder: Path) -> list[int]:
    images = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in frame_files(folder)]
    return [round(float(np.asarray(image).mean())) for image in images]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("75.5", 75.5),
        ("75,5", 75.5),
        (" 75.5 s", 75.5),
        ("1:15.5", 75.5),
        ("01:15,500", 75.5),
        ("00:01:15.5", 75.5),
        ("1:01:15", 3675),
        ("90:00", 5400),
        ("1e1", 10),
        ("-2", -2),
    ],
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert read_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:75", "1:2:3:4", "nan", "inf", "1,2,3", "0x1"])
def test_what_is_no_time_is_none(text: str) -> None:
    assert np.isnan(read_time(text))


def test_each_row_is_a_clip_with_the_frames_of_its_segment(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", 60)  # 5 s
    config = config_of(
        tmp_path, "file,label,time_start,time_end", "a.mp4,x,0:01,2", "a.mp4,y,3.0,4.5"
    )
    source = opened(config)
    assert source.bring() == {}
    table = source.ground_truth.table
    assert table["folder_name"].tolist() == ["a_000001.000_000002.000", "a_000003.000_000004.500"]
    assert table["group"].tolist() == ["a", "a"]
    for name, first, last in zip(table["folder_name"], (12, 36), (23, 53), strict=True):
        seen = grays(source.directory / name)
        assert (seen[0], seen[-1]) == pytest.approx((20 * first % 256, 20 * last % 256), abs=3)


def test_frames_count_from_zero_and_both_ends_belong_to_the_segment(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", 24)
    rows = ("a,x,2,5", "a,y,7,8", "a,x,8.5,11")
    source = opened(config_of(tmp_path, "video,class,start_frame,end_frame", *rows))
    reasons = [row.reason for row in source.ground_truth.dropped]
    assert reasons == ["frame_start or frame_end is no whole number: '8.5 to 11'"]
    assert source.bring() == {}
    names = source.ground_truth.table["folder_name"].tolist()
    assert names == ["a_f000002_f000005", "a_f000007_f000008"]
    seen = grays(source.directory / names[0])
    assert sorted(set(seen)) == pytest.approx([40, 60, 80, 100], abs=3)


def test_impossible_segments_are_dropped_with_their_reasons(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", 24)  # 2 s
    rows = {
        "a.mp4,x,soon,1": "time_start or time_end is no time: 'soon to 1'",
        "a.mp4,x,,1": "time_start or time_end is no time: 'to 1'",
        "a.mp4,x,1.5,1": "its end is before its start: 1.5 to 1",
        "a.mp4,x,1.25,1.25": "it has no length: 1.25 to 1.25",
        "a.mp4,x,-1,1": "it begins before the video: -1 to 1",
        "a.mp4,x,7,9": "it ends at 9 s, the video at 2.00 s",
        "gone.mp4,x,0,1": "no such video",
    }
    good = [f"a.mp4,x,0,{number / 10}" for number in range(5, 15)]
    config = config_of(tmp_path, "file,label,time_start,time_end", *rows, *good)
    source = opened(config)
    bad = source.bring()
    reasons = [row.reason for row in source.ground_truth.dropped]
    assert not any("nan" in row.video for row in source.ground_truth.dropped)
    assert sorted(reasons + list(bad.values())) == sorted(rows.values())
    assert len(source.ground_truth.table) - len(bad) == len(good)


def test_equal_rows_are_one_clip_and_overlaps_of_other_labels_are_noted(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", 36)
    config = config_of(
        tmp_path,
        "file,label,time_start,time_end",
        "a.mp4,x,0,1",
        "a.mp4,x,0:00,1.0",
        "a.mp4,y,0.5,1.5",
        "a.mp4,x,1.5,2",
        "a.mp4,x,1.75,2",  # within another one, but of the same label
        "a.mp4,x,2,3",
        "a.mp4,y,2,3",
    )
    truth = opened(config).ground_truth
    first, second = "a_000000.000_000001.000", "a_000000.500_000001.500"
    others = ["a_000001.500_000002.000", "a_000001.750_000002.000"]
    assert truth.table["folder_name"].tolist() == [first, second, *others]
    assert truth.duplicates == [first]
    assert [(row.video, row.reason) for row in truth.dropped] == [
        ("a_000002.000_000003.000", "rows with contradicting labels: x, y")
    ]
    assert any("1 pairs of segments overlap" in n and second in n for n in truth.notes)


def test_all_segments_of_a_file_are_one_source(tmp_path: Path) -> None:
    rows = []  # segments with frames of their own: clips that show the same are one source
    for number, name in enumerate("abcdefgh"):
        write_video(tmp_path / "in" / f"{name}.avi", 60)
        rows += [
            f"{name}.avi,{label},{start},{start + 5}"
            for label, start in (("x", 2 * number), ("y", 30 + 2 * number))
        ]
    config = config_of(tmp_path, "file,label,frame_start,frame_end", *rows)
    prepared = prepare(config, open_source(config))
    splits = prepared.table.assign(file=prepared.table["folder_name"].str[0])
    assert (splits.groupby("file")["split"].nunique() == 1).all()
    assert prepared.report["num_clips"] == 16
    assert prepared.report["num_groups"] == 8
    # An id per row cannot divide a file.
    lines = [f"{row},id{number}" for number, row in enumerate(rows)]
    config = config_of(tmp_path, "file,label,frame_start,frame_end,youtube_id", *lines)
    assert open_source(config).ground_truth.table["group"].nunique() == 8
    config = config.replace(group_by="none")
    truth = open_source(config).ground_truth
    assert truth.table["group"].nunique() == 16
    assert any("may be in several splits" in note for note in truth.notes)


def test_files_that_were_cut_already_are_whole_clips(tmp_path: Path) -> None:
    name = "abcdefghijk_000004_000006"
    write_video(tmp_path / "in" / f"{name}.mp4", 24)
    write_video(tmp_path / "in" / "long.mp4", 24)
    rows = [f"{name}.mp4,x,4,6", "long.mp4,y,0,1"]
    truth = opened(config_of(tmp_path, "file,label,time_start,time_end", *rows)).ground_truth
    assert truth.table["folder_name"].tolist() == [name, "long_000000.000_000001.000"]
    assert truth.table["group"].tolist() == ["abcdefghijk", "long"]


def test_only_changed_segments_are_decoded_again(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.mp4", 36)
    rows = ["a.mp4,x,0,1", "a.mp4,y,1,2"]
    opened(config_of(tmp_path, "file,label,time_start,time_end", *rows)).bring()
    source = opened(
        config_of(
            tmp_path, "file,label,time_start,time_end", rows[0], "a.mp4,y,1,2.5", "a.mp4,z,2,3"
        )
    )
    before = {path: path.stat().st_ino for path in source.directory.rglob("*.jpg")}
    assert not source.is_ready()
    source.bring()
    assert source.is_ready()
    after = {path: path.stat().st_ino for path in source.directory.rglob("*.jpg")}
    assert before.items() <= after.items()
    assert len(after) == 4 * 40  # the former segment is still there


def test_a_file_is_read_and_demuxed_once_for_its_segments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "in" / "a.mp4", 36)
    calls: list[str] = []
    for module, name in ((decoding_worker, "file_digest"), (video, "index_video")):
        original = getattr(module, name)

        def counted(path: Path, name: str = name, original: object = original) -> object:
            calls.append(name)
            return original(path)  # type: ignore[operator]

        monkeypatch.setattr(module, name, counted)
    clips = tuple(
        (f"s{n}", decoding_worker.Segment(n / 10, n / 10 + 1, "seconds")) for n in range(9)
    )
    path = tmp_path / "in" / "a.mp4"
    file = decoding_worker.VideoFile(str(path), "stamp of this test")
    small = decoding_worker.FrameSettings(num_frames=2, size=32)
    for start in range(0, 9, 3):
        digest, results = decoding_worker.decode(
            decoding_worker.Task(file, clips[start : start + 3], small)
        )
        assert digest
        assert all(len(result.frames) == 2 for result in results)
    assert sorted(calls) == ["file_digest", "index_video"]


def test_too_few_files_for_the_splits_are_one_line(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / "in" / f"{name}.avi", 24 + ord(name) % 7)
    rows = [f"{n}.avi,{label},{s},{s + 0.5}" for n in "ab" for s, label in enumerate("xyx")]
    config = config_of(tmp_path, "file,label,time_start,time_end", *rows)
    with pytest.raises(Exception, match="Needed: 3 sources"):
        prepare(config, open_source(config))


@pytest.mark.parametrize("column", ["time_start", "end", "Start (s)", "first_frame", "frame_end"])
def test_a_start_without_an_end_is_refused(tmp_path: Path, column: str) -> None:
    write_video(tmp_path / "in" / "a.mp4", 60)
    with pytest.raises(UserError, match=r"^gt_csv: it has a column .*, but no .*Needed: both"):
        _ = opened(config_of(tmp_path, f"file,label,{column}", "a.mp4,x,1")).ground_truth


def test_times_beside_frame_folders_are_noted(tmp_path: Path) -> None:
    write_clip(tmp_path / "in" / "a", seed=0)
    lines = ("folder_name,label,time_start,time_end", "a,x,10,20")
    truth = open_source(config_of(tmp_path, *lines)).ground_truth
    assert len(truth.table) == 1
    assert any("times of segments are not used" in note for note in truth.notes)


def test_the_list_of_kinetics_cuts_whole_videos_named_by_their_ids(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "train" / "abcdefghijk.mp4", 60)
    lines = ("label,youtube_id,time_start,time_end", "x,abcdefghijk,1,2", "y,abcdefghijk,2,3")
    table = opened(config_of(tmp_path, *lines, "x,lostlostlos,0,9")).ground_truth.table
    names = [f"train/abcdefghijk_{start:010.3f}_{start + 1:010.3f}" for start in (1, 2)]
    assert table["folder_name"].tolist() == names
    # As soon as one clip has been cut, the list is that of the clips.
    write_video(tmp_path / "in" / "abcdefghijk_000001_000002.mp4", 12)
    table = opened(config_of(tmp_path, *lines)).ground_truth.table
    assert table["folder_name"].tolist() == ["abcdefghijk_000001_000002"]
