"""Any table that people have is read like its plain form, or refused in one line."""

import gzip
import json
import os
from pathlib import Path

import pandas as pd
import pytest

from k400tiny_lib.data.tables.reading import Table, read_table
from k400tiny_lib.errors import UserError

PAIRS = [("a.mp4", "run"), ("sub/b.mp4", "jump, high")]


def write(tmp_path: Path, content: str | bytes, name: str = "gt.csv") -> str:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def pairs(table: Table) -> list[tuple[str, str]]:
    return list(table.rows[["file", "label"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "content",
    [
        'file,label\na.mp4,run\nsub/b.mp4,"jump, high"\n',
        "file;label\na.mp4;run\nsub/b.mp4;jump, high\n",
        "file\tlabel\na.mp4\trun\nsub/b.mp4\tjump, high\n",
        "file|label\na.mp4|run\nsub/b.mp4|jump, high\n",
        "sep=;\nfile;label\na.mp4;run\nsub/b.mp4;jump, high\n",
        '# from the camera\n\nfile,label\na.mp4,run\n# then, a, break\nsub/b.mp4,"jump, high"\n\n',
        'file,label\na.mp4,run\n#c.mp4\n#d.mp4,"x",y\nsub/b.mp4,"jump, high"\n',
        'file, label\na.mp4, run\nsub/b.mp4, "jump, high"\n',
        'file,label\ra.mp4,run\rsub/b.mp4,"jump, high"\r',
        'file,label\r\na.mp4,run\r\nsub/b.mp4,"jump, high"\r\n\x1a',
        'file,label\na.mp4,run,\nsub/b.mp4,"jump, high",,\n,,,\n',
        'file,label,,\na.mp4,run,,\nsub/b.mp4,"jump, high",,\n',
        ',file,label\n0,a.mp4,run\n1,sub/b.mp4,"jump, high"\n',
        '"file","label"\n"1","a.mp4","run"\n"2","sub/b.mp4","jump, high"\n',
        "a.mp4;run\nsub/b.mp4;jump, high\n",
        "a.mp4 run\nsub/b.mp4 jump, high\n",
        "a.mp4;run\n#c.mp4\nsub/b.mp4;jump, high\n",
        '"a.mp4" run\nsub/b.mp4 "jump, high"\n',
        "a.mp4 40 run\nsub/b.mp4 8 jump, high\n",
        "path label\na.mp4 run\nsub/b.mp4   jump, high\n",
        json.dumps([dict(zip(("file", "label"), pair, strict=True)) for pair in PAIRS]),
        '{"video": "a.mp4", "label": "run"}\n{"video": "sub/b.mp4", "label": "jump, high"}\n',
    ],
)
def test_every_dialect_gives_the_same_rows(tmp_path: Path, content: str) -> None:
    assert pairs(read_table(write(tmp_path, content))) == PAIRS


@pytest.mark.parametrize("file", ["file", "Path", "VIDEO", "video_path", "File Name", "filename"])
@pytest.mark.parametrize("label", ["label", "Class", "category", "action", "class_name", "#label"])
@pytest.mark.parametrize("separator", [",", "\t"])
def test_usual_names_of_columns_are_understood(
    tmp_path: Path, file: str, label: str, separator: str
) -> None:
    rows = [(label, file), ("run", "a.mp4"), ("jump", "b.mp4")]
    content = "".join(separator.join(row) + "\n" for row in rows)
    assert pairs(read_table(write(tmp_path, content))) == [("a.mp4", "run"), ("b.mp4", "jump")]


@pytest.mark.parametrize(
    ("header", "column", "source"),
    [
        ("video_id,label", "file", "video_id"),
        ("id,label", "file", "id"),
        ("youtube_id,label", "file", "youtube_id"),
        ("file,video_id,label", "youtube_id", "video_id"),
        ("path,file,label", "file", "file"),
        ("file,YTID,label", "youtube_id", "YTID"),
        ("video_id,label,start,end", "youtube_id", "video_id"),
        ("file,label,Subset", "split", "Subset"),
        ("file,label,Start (s),Stop (s)", "time_end", "Stop (s)"),
        ("file,label,begin,end", "time_start", "begin"),
        (
            "file,label,Begin Time - ss.msec,End Time - ss.msec",
            "time_start",
            "Begin Time - ss.msec",
        ),
        ("file,label,start_time,stop_time", "time_end", "stop_time"),
        ("file,label,start_frame,end_frame", "frame_end", "end_frame"),
        ("file,label,frame_start,frame_end", "frame_start", "frame_start"),
    ],
)
def test_a_column_is_taken_for_what_it_is(
    tmp_path: Path, header: str, column: str, source: str
) -> None:
    cells = [f"cell {number}" for number in range(header.count(",") + 1)]
    rows = read_table(write(tmp_path, f"{header}\n{','.join(cells)}\n")).rows
    assert rows[column].tolist() == [cells[header.split(",").index(source)]]
    assert rows[source].tolist() == rows[column].tolist()  # group_by may name it


def test_times_in_milliseconds_become_seconds(tmp_path: Path) -> None:
    content = "file,label,start_ms,end_ms\na.mp4,x,1500,62000\nb.mp4,y,soon,2\n"
    rows = read_table(write(tmp_path, content)).rows
    times = rows[["time_start", "time_end"]].to_numpy().tolist()
    assert times == [["1.500", "62.000"], ["soon", "0.002"]]  # which drops the row later


@pytest.mark.parametrize("id_column", ["id", "clip_id"])
def test_numbers_of_rows_are_no_sources(tmp_path: Path, id_column: str) -> None:
    rows = read_table(write(tmp_path, f"{id_column},file,label\n0,a.mp4,x\n1,b.mp4,y\n")).rows
    assert "youtube_id" not in rows.columns


def test_labels_stay_text_whatever_they_look_like(tmp_path: Path) -> None:
    labels = ["NA", "None", "null", "nan", "True", "N/A", "1", "1.0", "007", "1e3", "-", "inf"]
    content = "".join(f"{number}.mp4,{label}\n" for number, label in enumerate(labels))
    assert read_table(write(tmp_path, "file,label\n" + content)).rows["label"].tolist() == labels


def test_a_cell_may_be_as_long_as_it_likes(tmp_path: Path) -> None:
    cell = "z" * 200_000
    rows = read_table(write(tmp_path, f"file,label,boxes\na.mp4,x,{cell}\n")).rows
    assert rows.to_numpy().tolist() == [["a.mp4", "x", cell]]


def test_half_a_surrogate_pair_in_json_is_escaped(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, r'[{"file": "caf\udce9.mp4", "label": "\ud83d\ude00"}]'))
    assert pairs(table) == [(r"caf\xe9.mp4", "\N{GRINNING FACE}")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_is_found_out(tmp_path: Path, encoding: str) -> None:
    content = "file,label\ncafé.mp4,跑步\n".encode(encoding)
    table = read_table(write(tmp_path, content))
    assert pairs(table) == [("café.mp4", "跑步")]
    assert len(table.notes) == ("16" in encoding)


def test_other_encodings_are_read_as_those_of_windows_and_a_note_says_so(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "file,label\na.mp4,café – “x”\n".encode("cp1252")))
    assert pairs(table) == [("a.mp4", "café – “x”")]
    assert "read as cp1252" in table.notes[0]
    table = read_table(write(tmp_path, b"file,label\na.mp4,\x81\xe9\n"))
    assert "read as latin-1" in table.notes[0]
    # Two files in one, say: the mark of UTF-8 and then something else.
    table = read_table(write(tmp_path, b"\xef\xbb\xbf" + "file;label\na.mp4;é\n".encode("cp1252")))
    assert pairs(table) == [("a.mp4", "é")]
    assert "read as cp1252" in table.notes[0]


def test_ucf101_labels_are_folders_with_ids_and_without(tmp_path: Path) -> None:
    names = ["YoYo/v_YoYo_g01_c01.avi", "Archery/v_Archery_g02_c01.avi"]
    expected = [(names[0], "YoYo"), (names[1], "Archery")]
    assert pairs(read_table(write(tmp_path, "\r\n".join(names)))) == expected
    table = read_table(write(tmp_path, f"{names[0]} 1\r\n{names[1]} 2\r\n"))
    assert pairs(table) == expected
    assert "labels are the folders' names" in table.notes[0]
    # Other numbers than one per folder mean something else.
    table = read_table(write(tmp_path, f"{names[0]} 1\n{names[1]} 1\n"))
    assert [label for _, label in pairs(table)] == ["1", "1"]
    table = read_table(write(tmp_path, "x/a.mp4 1\ny/b.mp4 2\n"))
    assert pairs(table) == [("x/a.mp4", "1"), ("y/b.mp4", "2")]


def test_names_of_hmdb51_with_labels_are_a_list_like_any_other(tmp_path: Path) -> None:
    name = "April_09_brush_hair_u_nm_np1_ba_goo_0.avi"
    assert pairs(read_table(write(tmp_path, f"{name} brush_hair\n"))) == [(name, "brush_hair")]
    assert pairs(read_table(write(tmp_path, f"brush_hair/{name} 1\n")))[0][1] == "1"


@pytest.mark.parametrize("lines", ["a.mp4\nb.mp4\n", "a.mp4 8 1\nb.mp4 1\n", "a.mp4;x;y\n"])
def test_lists_that_could_mean_anything_are_not_guessed(tmp_path: Path, lines: str) -> None:
    assert "label" not in read_table(write(tmp_path, lines + lines)).rows.columns


def test_frame_lists_without_a_header_have_the_count_in_the_middle(tmp_path: Path) -> None:
    rows = read_table(write(tmp_path, "some/clip0 40 0\nsome/clip1 38 12\n")).rows
    expected = [["some/clip0", "0"], ["some/clip1", "12"]]
    assert rows[["file", "label"]].to_numpy().tolist() == expected


def test_something_something_has_its_classes_in_the_template(tmp_path: Path) -> None:
    record = {"id": "78687", "label": "holding potato", "template": "Holding [something]"}
    table = read_table(write(tmp_path, json.dumps([record | {"placeholders": ["potato"]}])))
    assert pairs(table) == [("78687", "Holding something")]
    assert "the labels are the column 'template'" in table.notes[0]


def test_numbers_of_json_stay_the_text_that_they_are(tmp_path: Path) -> None:
    content = '[{"file": "a.mp4", "label": 007}]'.replace("007", "1.50")
    assert pairs(read_table(write(tmp_path, content))) == [("a.mp4", "1.50")]


def test_plain_tables_are_those_of_pandas(tmp_path: Path) -> None:
    content = 'file,label,x\na.mp4,"a ""b"", c",NA\n"b\n.mp4",,3.10\n'
    path = write(tmp_path, content)
    table = read_table(path)
    assert table.notes == []
    pd.testing.assert_frame_equal(
        table.rows, pd.read_csv(path, dtype=object, keep_default_na=False)
    )


def test_comments_are_counted_in_a_note(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, "# one\nfile,label\na.mp4,run\n# two, three\n"))
    assert table.notes == ["gt_csv: 2 line(s) of gt.csv that begin with # are comments"]


def test_of_two_other_columns_with_one_name_the_first_is_kept(tmp_path: Path) -> None:
    rows = read_table(write(tmp_path, "file,x,label,x\na.mp4,1,run,2\n")).rows
    assert rows.to_dict("list") == {"file": ["a.mp4"], "x": ["1"], "label": ["run"]}


def test_compressed_tables_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, gzip.compress(b"file,label\na.mp4,run\n"), "gt.csv.gz")
    assert pairs(read_table(path)) == [("a.mp4", "run")]
    with pytest.raises(UserError, match=r"^gt_csv: .* cannot be read: Not a gzipped file"):
        read_table(write(tmp_path, "file,label\na.mp4,run\n", "gt.csv.gz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.mp4,run, fast\n", r"line 2 .* 3 fields, .* \(file, label\).*Quote labels"),
        ("file,label,\nb.mp4,run,\na.mp4,run, fast\n", r"line 3 of gt.csv has 3 fields"),
        ("file,label\n\n#c\na.mp4,x\nb.mp4,y,z\n", r"line 5 of gt.csv has 3 fields"),
        ('file,label\na.mp4,"run\nb.mp4,y\n', r"line 2 .*opens a quote"),
        ("file,label,label\na,b,c\n", "two columns 'label'"),
        ("file,label\n", "has no rows"),
        ("", "has no rows, it is empty"),
        ("\n\n", "has no rows, it is empty"),
        ("# nothing\n", "has no rows"),
        (b"PK\x03\x04rest", "Excel workbook.*save it as CSV"),
        (b"PAR1rest", "Parquet file.*save it as CSV"),
        (b"\xff\xfef\0i\0l\0e", "is not UTF-16. Needed: CSV in UTF-8"),
        (bytes(range(1, 256)), "no text but binary data"),
        ('["a", "b"]', "JSON, but no list of objects"),
        ('[["a.mp4", "run"]]', "JSON, but no list of objects"),
        (
            '{"version": "1.3", "database": {"v_1": {}}}',
            "JSON, but a single object with the keys 'version, database'.*ActivityNet",
        ),
        (
            "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \nA_sit_h_cm_np1_fr_med_3.avi 2 \n",
            "gt.csv is a list of HMDB51, whose numbers are no labels: 1 is train",
        ),
        ('[{"file": ', "is no JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_place(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(UserError, match=f"^gt_csv: .*{message}") as error:
        read_table(write(tmp_path, content))
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    places = {"": "is a directory", "no.csv": "does not exist", "pipe": "is no regular file"}
    # As for a file in a folder without permission, which would be readable for root.
    for name, problem in (places | {"x" * 300: "cannot be read: File name too long"}).items():
        with pytest.raises(UserError, match=f"^gt_csv: .* {problem}. Needed: "):
            read_table(str(tmp_path / name))
