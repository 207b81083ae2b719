"""Names in a table meet their files; names of clips never nest and never merge."""

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k400tiny_lib.data.tables.names import (
    ESCAPES_DATA_PATH,
    Names,
    name_clips,
    plain_forms,
    separate,
)

BASE = "/data/in"
CAFE = "café.mp4"
FILES = [
    "run/a.mp4",
    "run/c.mp4",
    "in/deep.mp4",
    "78687.webm",
    "other/B.MP4",
    "Mixed/Case.mkv",
    "twice.mp4.mkv",
    "x/same.mp4",
    "y/same.mp4",
    "100%.mp4",
    "both.mp4",
    "both.avi",
    " led.mp4",
    unicodedata.normalize("NFD", CAFE),
]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("run/a.mp4", "run/a.mp4"),
        ("run\\a.mp4", "run/a.mp4"),
        ("run//a.mp4", "run/a.mp4"),
        ("./run/a.mp4", "run/a.mp4"),
        ("run/../run/c.mp4", "run/c.mp4"),
        (" run/a.mp4 ", "run/a.mp4"),
        ("/data/in/run/a.mp4", "run/a.mp4"),
        ("/data/in//run/./a.mp4", "run/a.mp4"),
        ("in/run/a.mp4", "run/a.mp4"),
        ("data/in/run/a.mp4", "run/a.mp4"),
        ("in/deep.mp4", "in/deep.mp4"),
        ("in/in/deep.mp4", "in/deep.mp4"),
        ("run%2Fa.mp4", "run/a.mp4"),
        ("file:///data/in/run/a.mp4", "run/a.mp4"),
        ("file:///data/in/Mixed/Case%2Emkv", "Mixed/Case.mkv"),
        ("/home/me/videos/run/a.mp4", "run/a.mp4"),
        ("C:\\videos\\run\\a.mp4", "run/a.mp4"),
        ("\\\\nas\\in\\78687.webm", "78687.webm"),
        ("100%.mp4", "100%.mp4"),
        ("c%2Emp4", "run/c.mp4"),
        ("run/a", "run/a.mp4"),
        ("run/a.avi", "run/a.mp4"),
        ("78687", "78687.webm"),
        ("other/B.mp4", "other/B.MP4"),
        ("mixed/case", "Mixed/Case.mkv"),
        ("twice.mp4", "twice.mp4.mkv"),
        ("twice", "twice.mp4.mkv"),
        ("c", "run/c.mp4"),
        ("C.avi", "run/c.mp4"),
        ("both.avi", "both.avi"),
        ("led.mp4", " led.mp4"),
        (" led.mp4", " led.mp4"),
        (CAFE, unicodedata.normalize("NFD", CAFE)),
    ],
)
def test_a_name_means_the_file_that_a_person_means(name: str, file: str) -> None:
    match = Names(BASE, FILES, "no such video").find(name)
    assert (match.file, match.problem) == (file, "")


@pytest.mark.parametrize("name", ["../secret.mp4", "/etc/passwd", "run/../../a.mp4", "..", "/data"])
def test_a_name_never_leaves_the_directory(name: str) -> None:
    assert Names(BASE, FILES, "no such video").find(name).problem == ESCAPES_DATA_PATH


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("same", "'x/same.mp4' and 'y/same.mp4' are both like it"),
        ("both.mkv", "'both.avi' and 'both.mp4' are both like it"),
        ("run/b.mp4", "no such video (the nearest is 'run/c.mp4')"),
        ("entirely-different", "no such video"),
    ],
)
def test_a_name_without_one_file_says_why(name: str, problem: str) -> None:
    match = Names(BASE, FILES, "no such video").find(name)
    assert match.problem.startswith("no such video")
    assert match.problem.endswith(problem)


def test_absolute_names_lead_through_links_in_both_directions(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "run").mkdir(parents=True)
    (store / "run" / "a.mp4").touch()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "linked").symlink_to(store / "run")
    (tmp_path / "link").symlink_to(store)
    names = Names(str(tmp_path / "link"), ["run/a.mp4"], "no such video")
    assert names.find(str(store / "run" / "a.mp4")).file == "run/a.mp4"
    names = Names(str(store), ["run/a.mp4"], "no such video")
    assert names.find(str(tmp_path / "link" / "run" / "a.mp4")).file == "run/a.mp4"
    names = Names(str(tmp_path / "in"), ["linked/a.mp4"], "no such video")
    assert names.find(str(store / "run" / "a.mp4")).file == "linked/a.mp4"
    assert names.find(str(store / "run" / "b.mp4")).problem == ESCAPES_DATA_PATH


def test_a_file_of_this_machine_outside_is_not_taken_for_one_of_another(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    names = Names("/data/in", ["a.mp4"], "missing")
    assert names.find(str(tmp_path / "a.mp4")).problem == ESCAPES_DATA_PATH
    (tmp_path / "a.mp4").unlink()
    assert names.find(str(tmp_path / "a.mp4")) == ("a.mp4", "", True)


@pytest.mark.parametrize("name", ["no/run/a.mp4", "/data\0/run/a.mp4", "C:run/a.mp4"])
def test_only_whole_paths_are_those_of_another_machine(name: str) -> None:
    assert Names("/data/in", ["run/a.mp4"], "missing").find(name).problem


@pytest.mark.parametrize("name", ["", "  ", "/data\0/run/a.mp4", "run/a\0.mp4"])
def test_what_is_no_path_has_no_forms(name: str) -> None:
    assert plain_forms(name, "/data/in") == []


def test_another_machine_has_one_directory_in_place_of_data_path() -> None:
    names = Names("/data/in", ["a.mp4", "run/b.mp4", "jump/a.mp4"], "missing")
    assert names.find("/home/me/run/b.mp4").file == "run/b.mp4"
    assert names.find("/home/me/run/a.mp4").problem == ESCAPES_DATA_PATH  # is missing
    assert names.find("/home/me/jump/a.mp4").file == "jump/a.mp4"
    assert names.find("/mnt/a.mp4").file == "a.mp4"
    assert names.find("/mnt/run/a.mp4").problem == ESCAPES_DATA_PATH
    assert names.find("/data/in/run/a.mp4").problem.startswith("missing")


def test_names_below_a_bucket_may_have_its_address() -> None:
    names = Names("s3://bucket/videos", ["run/a.mp4"], "no such video")
    assert names.find("s3://bucket/videos/run/a.mp4").file == "run/a.mp4"
    assert names.find("videos/run/a.mp4").file == "run/a.mp4"


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a.mp4", "b.mp4"], ["a", "b"]),
        (["a.mp4", "a.avi"], ["a.mp4", "a.avi"]),
        (["a.mp4", "a/b.mp4"], ["a.mp4", "a/b"]),
        (["a.mp4.mp4", "a.mp4", "a.avi"], ["a.mp4.mp4", "a.mp4", "a.avi"]),
        (["b.mp4", "b .mp4"], ["b.mp4", "b .mp4"]),
        (["a.mp4", "a.mp4.mkv", "a/b.mp4"], ["a.mp4", "a.mp4.mkv", "a/b"]),
    ],
)
def test_a_clip_has_the_name_of_its_file_without_the_suffix_where_that_is_safe(
    files: list[str], names: list[str]
) -> None:
    assert [name_clips(files)[file] for file in files] == names


def keys(names: list[str]) -> list[str]:
    return [unicodedata.normalize("NFC", name).casefold() for name in names]


def assert_apart(names: list[str]) -> None:
    """No two are one folder on any file system, and none is above another."""
    folded = keys(names)
    assert len(set(folded)) == len(folded)
    for name in folded:
        assert not any(other.startswith(f"{name}/") for other in folded)
    assert all(part == part.strip() and part for name in names for part in name.split("/"))


_PART = st.sampled_from(["a", "A", "b", "b ", " b", "é", "é", "a.mp4", "a.avi"])
_FILE = st.builds(
    lambda folders, stem, suffix: "/".join([*folders, stem + suffix]),
    st.lists(_PART, max_size=2),
    _PART,
    st.sampled_from([".mp4", ".avi", ".MP4"]),
)


@given(st.sets(_FILE, max_size=12), st.randoms())
def test_names_of_clips_are_apart_whatever_the_files(files: set[str], rng: random.Random) -> None:
    # A file cannot be a folder too.
    files = {f for f in files if not any(other.startswith(f"{f}/") for other in files)}
    names = name_clips(files)
    assert names.keys() == files
    assert_apart(list(names.values()))
    shuffled = list(files)
    rng.shuffle(shuffled)
    assert name_clips(shuffled) == names


def test_long_and_nesting_names_of_segments_are_made_distinct() -> None:
    long = "x" * 260
    names = separate([f"a/{long}_1", f"a/{long}_2", "b", "b/c", "d"])
    assert_apart(names)
    assert names[-1] == "d"
    assert all(len(part.encode()) <= 255 for name in names for part in name.split("/"))
