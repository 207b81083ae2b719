"""The walk of a directory: what is a clip, what is left out, and that nothing else is lost."""

import os
import posixpath
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.media import own_output
from k400tiny_lib.media.listing import (
    EMPTY,
    NOT_A_CLIP,
    NOT_UTF8,
    OTHER_PICTURES,
    SYSTEM,
    UNKNOWN_SUFFIX,
    WITHIN_A_CLIP,
    Listing,
    describe_left_out,
    list_directory,
    list_stamps,
    may_be_clips,
)
from tests.conftest import REPOSITORY


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def bad_name(folder: Path, name: bytes) -> bytes:
    return os.fsencode(folder) + b"/" + name


def walk(root: Path, is_clip: bool = False) -> Listing:
    return list_directory(root, "data_path", "a directory", is_clip=is_clip)


def frames(folder: str, count: int = 3) -> list[str]:
    return [f"{folder}/frame{number:02d}.jpg" for number in range(count)]


def test_links_to_folders_and_files_are_followed_and_circles_end(tmp_path: Path) -> None:
    touch(tmp_path / "store", "x/a.mp4", "deep/x/b.mp4", *frames("c"))
    root = touch(tmp_path / "in", "y/own.mp4")
    (root / "x").symlink_to(tmp_path / "store" / "x")
    (root / "again").symlink_to(tmp_path / "store" / "x")  # one folder in two places
    (root / "deep").symlink_to(tmp_path / "store" / "deep")
    (root / "clip").symlink_to(tmp_path / "store" / "c")
    (root / "y" / "file.mp4").symlink_to(tmp_path / "store" / "x" / "a.mp4")
    (root / "y" / "up").symlink_to(root)
    (root / "y" / "same").symlink_to(root / "y")
    (root / "y" / "relative").symlink_to("../y")
    (tmp_path / "link").symlink_to(root)
    for start in (root, tmp_path / "link"):
        listing = walk(start)
        assert listing.clips == (
            *("again/a.mp4", "clip", "deep/x/b.mp4", "x/a.mp4", "y/file.mp4", "y/own.mp4"),
        )
        circle = "a link to a folder that contains it"
        assert listing.left_out == dict.fromkeys(("y/relative", "y/same", "y/up"), circle)
        assert may_be_clips(listing.left_out) == []


def test_folders_that_all_link_to_one_another_do_not_multiply_without_end(tmp_path: Path) -> None:
    names = "abcdefg"
    touch(tmp_path, *(f"{name}/v.mp4" for name in names))
    for name in names:
        for other in names:
            if other != name:
                (tmp_path / name / other).symlink_to(tmp_path / other)
    listing = walk(tmp_path)
    assert {clip for clip in listing.clips if clip.count("/") == 1} == {f"{n}/v.mp4" for n in names}
    assert len(listing.clips) < 10_000


def test_what_cannot_be_opened_is_named_and_waits_for_nobody(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/a.mp4", *frames("y/c"), *frames("y/d"))
    os.mkfifo(root / "x" / "pipe.mp4")
    os.mkfifo(root / "x" / "pipe.json")
    os.mkfifo(root / "y" / "c" / "frame01b.jpg")
    (root / "x" / "gone.mp4").symlink_to("nowhere")
    (root / "x" / "unmounted").symlink_to("/nowhere/folder")
    (root / "x" / "me.mp4").symlink_to("me.mp4")
    (root / "x" / "null.mp4").symlink_to("/dev/null")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(root / "x")  # the path of a socket is short
        server.bind("s.mp4")
        os.chdir(here)
        listing = walk(root)
    assert listing.clips == ("x/a.mp4", "y/c", "y/d")
    assert listing.unusable == {
        "x/gone.mp4": "a link to nowhere",
        "x/me.mp4": "cannot be read: Too many levels of symbolic links",
        "x/null.mp4": "no regular file but a device",
        "x/pipe.mp4": "no regular file but a named pipe",
        "x/s.mp4": "no regular file but a socket",
        "x/unmounted": "a link to nowhere",
    }
    assert listing.left_out == {"x/pipe.json": NOT_A_CLIP}
    problem = "frame01b.jpg is no regular file but a named pipe"
    assert listing.frame_folders == {"y/c": problem, "y/d": ""}


def test_names_that_are_not_utf8_are_named_in_text(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/a.mp4", *frames("y/c"))
    for name in (b"x/caf\xe9.mp4", b"y/c/caf\xe9.jpg", b"x/caf\xe9.txt", b"x/\xff\xfe"):
        Path(os.fsdecode(bad_name(root, name))).touch()
    Path(os.fsdecode(bad_name(root, b"r\xe9sum\xe9"))).mkdir()
    listing = walk(root)
    assert listing.clips == ("x/a.mp4", "y/c")
    assert listing.unusable == dict.fromkeys((r"r\xe9sum\xe9", r"x/caf\xe9.mp4"), NOT_UTF8)
    assert listing.left_out == {r"x/caf\xe9.txt": NOT_A_CLIP, r"x/\xff\xfe": UNKNOWN_SUFFIX}
    assert listing.frame_folders == {"y/c": rf"caf\xe9.jpg: {NOT_UTF8}"}


def test_any_name_is_printed_on_one_line() -> None:
    assert printable("a\nb\r\x1b[31m\u2028c\udce9é日\U0001f469") == (
        r"a\nb\r\x1b[31m\u2028c\xe9é日" + "\U0001f469"
    )
    assert describe_left_out({"a\nb.xyz": UNKNOWN_SUFFIX}) == [
        rf"left out 1 ({UNKNOWN_SUFFIX}): a\nb.xyz"
    ]


@pytest.mark.skipif(os.getuid() != 0, reason="becomes another user")
def test_folders_without_permission_are_named(tmp_path: Path) -> None:
    root = Path(tempfile.mkdtemp())  # pytest's directories are locked themselves
    try:
        touch(root, "in/x/a.mp4", "in/locked/b.mp4", "in/sealed/c.mp4", "top/a.mp4")
        root.chmod(0o755)
        (root / "in" / "locked").chmod(0)
        (root / "in" / "sealed").chmod(0o644)  # names can be read, but nothing behind them
        (root / "top").chmod(0)
        code = (
            "import os, sys\n"
            "from pathlib import Path\n"
            "from k400tiny_lib.errors import UserError\n"
            "from k400tiny_lib.media.listing import list_directory\n"
            "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "root = Path(sys.argv[1])\n"
            "listing = list_directory(root / 'in', 'data_path', 'x')\n"
            "print(listing.clips, dict(listing.unusable))\n"
            "for name in ('top', 'top/inner'):\n"
            "    try:\n"
            "        list_directory(root / name, 'data_path', 'x')\n"
            "    except UserError as error:\n"
            "        print(str(error).replace(sys.argv[1], ''))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(root)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        shutil.rmtree(root)
    assert done.stderr == ""
    locked = "data_path: /top{} cannot be read: Permission denied. Needed: x."
    assert done.stdout.splitlines() == [
        # What cannot be opened is found when it is decoded.
        "('sealed/c.mp4', 'x/a.mp4') {'locked': 'cannot be read: Permission denied'}",
        locked.format(""),
        locked.format("/inner"),
    ]


def test_what_is_no_clip_is_left_out_with_a_reason(tmp_path: Path) -> None:
    root = touch(
        tmp_path,
        *("x/a.mp4", "x/a.json", "x/a.srt", "x/a.jpg", "x/b.xyz", "x/c", "x/d.zip"),
        *("w/1.webp", "w/2.WEBP", "w/notes.txt", ".hidden/a.mp4", "x/._a.mp4", ".DS_Store"),
        *("__MACOSX/x/a.mp4", "x/@eaDir/a.mp4/SYNO.jpg", "x/Thumbs.db", "lost+found/x.mp4"),
    )
    (root / "e").mkdir()
    listing = walk(root)
    assert listing.clips == ("x/a.mp4",)
    assert listing.left_out == {
        "__MACOSX": SYSTEM,
        "e": EMPTY,
        "lost+found": SYSTEM,
        "w": OTHER_PICTURES,
        "w/notes.txt": NOT_A_CLIP,
        "x/@eaDir": SYSTEM,
        "x/Thumbs.db": SYSTEM,
        "x/a.jpg": NOT_A_CLIP,
        "x/a.json": NOT_A_CLIP,
        "x/a.srt": NOT_A_CLIP,
        "x/b.xyz": UNKNOWN_SUFFIX,
        "x/c": UNKNOWN_SUFFIX,
        "x/d.zip": UNKNOWN_SUFFIX,
    }
    assert may_be_clips(listing.left_out) == ["e", "w", "x/b.xyz", "x/c", "x/d.zip"]
    lines = describe_left_out(listing.left_out, max_names=2)
    assert f"left out 3 ({UNKNOWN_SUFFIX}): x/b.xyz, x/c and 1 more" in lines
    assert lines[-1] == f"left out 4 ({NOT_A_CLIP}): 1 .txt, 1 .jpg, 1 .json, 1 .srt"


@pytest.mark.parametrize(
    ("names", "clips"),
    [
        (["a.jpg", "b.jpg", *frames("c0"), *frames("c1")], ["c0", "c1"]),
        (["a.jpg", "a.mp4"], ["a.mp4"]),
        (["1.png", "2.png", "3.png", "v.mp4", "w.mp4"], ["v.mp4", "w.mp4"]),
        (["1.png", "2.png", "sub/v.mp4"], ["sub/v.mp4"]),
        ([*frames("g", 1), *frames("g/c0"), *frames("g/c1")], ["g/c0", "g/c1"]),
        ([*frames("c", 40), *frames("c/thumbs", 40)], ["c"]),
        ([*frames("c", 40), "c/cut_from.mp4"], ["c"]),
        (
            [f"IMG_{n}.jpg" for n in range(40)] + ["MOV_1.mp4", "MOV_2.mp4"],
            ["MOV_1.mp4", "MOV_2.mp4"],
        ),
        (["1.jpg", "2.jpg", "notes.txt"], [""]),
        (["a.mp4", *frames("c")], ["a.mp4", "c"]),
    ],
)
def test_previews_hide_no_clip_and_a_clip_hides_its_previews(
    tmp_path: Path, names: list[str], clips: list[str]
) -> None:
    listing = walk(touch(tmp_path, *names), is_clip=True)
    assert list(listing.clips) == clips
    unseen = {n for n in names if n not in clips and posixpath.dirname(n) not in clips}
    left_out = {
        n for n in names if n in listing.left_out or posixpath.dirname(n) in listing.left_out
    }
    assert unseen - left_out == set()
    assert set(listing.left_out.values()) <= {NOT_A_CLIP, WITHIN_A_CLIP}


def write_old_output(root: Path) -> None:
    """Directories of ours as they were before they had a mark."""
    touch(
        root,
        *("frames-0a1b2c3d/x/a/frame00.jpg", "frames-0a1b2c3d/x/a/.source"),
        *(
            "sample-v1-seed0/k400tiny_images/c/frame00.jpg",
            "sample-v1-seed0/k400tiny_ground_truth.csv",
        ),
        *(
            "mlruns/1/abc/artifacts/images/a.png",
            "checkpoints/abc/last.pt",
            ".k400tiny/content.sqlite",
        ),
    )


def test_our_own_output_is_passed_over_with_and_without_a_mark(tmp_path: Path) -> None:
    root = touch(tmp_path, "x/a.mp4")
    write_old_output(root)
    own_output.mark(touch(root, "frames-deadbeef/x/a/frame00.jpg") / "frames-deadbeef")
    listing = walk(root)
    assert listing.clips == ("x/a.mp4",)
    assert listing.left_out == listing.unusable == {}
    assert listing.own == (
        *("checkpoints", "frames-0a1b2c3d", "frames-deadbeef", "mlruns", "sample-v1-seed0"),
    )
    # Whoever names such a directory means it.
    assert walk(root / "frames-0a1b2c3d").clips == ("x/a",)


def test_folders_of_the_user_with_similar_names_are_not_ours(tmp_path: Path) -> None:
    names = (
        "frames-of-x",
        "frames-20240101",
        "frames-deadbeef2",
        "sample-1",
        "checkpoints",
        "runs",
    )
    root = touch(tmp_path, *(f"{name}/a.mp4" for name in names))
    own_output.mark(touch(root, "renamed/a.mp4") / "renamed")
    listing = walk(root)
    assert listing.own == ()
    assert len(listing.clips) == len(names) + 1


def test_our_uploads_are_passed_over_in_a_bucket(tmp_path: Path) -> None:
    files = [f"frames-0a1b2c3d/x/a/frame{n:02d}.jpg" for n in range(40)]
    dated = [f"frames-20240101/a/frame{n:02d}.jpg" for n in range(40)]
    other = [*frames("frames-0a1b2c3e/a"), "checkpoints/a.mp4", "sample-v1-seed1/a.mp4"]
    sample = ["sample-v1-seed0/k400tiny_images/c/frame00.jpg", "mlruns/0/image.png"]
    names = [*files, *dated, *other, *sample, "x/checkpoints/r/best.pt", "x/a.mp4"]
    listing = list_stamps(dict.fromkeys(names, "1"))
    assert listing.own == ("frames-0a1b2c3d", "mlruns", "sample-v1-seed0", "x/checkpoints")
    assert listing.clips == (
        *("checkpoints/a.mp4", "frames-0a1b2c3e/a", "frames-20240101/a"),
        *("sample-v1-seed1/a.mp4", "x/a.mp4"),
    )


def test_a_bucket_is_arranged_as_a_directory_is(tmp_path: Path) -> None:
    names = [
        *("x/a.mp4", "x/a.json", "x/b.xyz", "w/1.webp", ".hidden/a.mp4", "__MACOSX/x/a.mp4"),
        *(*frames("y/c"), "y/preview.png", *frames("y/d"), "y/d/v/1.jpg", "top.mp4"),
    ]
    local, remote = walk(touch(tmp_path, *names)), list_stamps(dict.fromkeys(names, "1"))
    assert local.clips == remote.clips
    assert local.left_out == remote.left_out
    assert local.frame_folders == remote.frame_folders
    assert local.videos.keys() == remote.videos.keys()


def test_very_deep_folders_end_in_one_reason(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(65):
        folder /= "d"
    touch(folder, "a.mp4")
    assert list(walk(tmp_path).unusable.values()) == ["more than 60 folders deep"]


COMMON = ("a", "b", "v.mp4", "w.AVI", "1.jpg", "2.png", "x.webp", "n.txt", "o.xyz", ".h")
PARTS = st.one_of(
    st.sampled_from([*COMMON, "frames-0a1b2c3d", "mlruns", "__MACOSX"]).map(os.fsencode),
    st.binary(min_size=1, max_size=9).filter(
        lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
    ),
)
KINDS = st.sampled_from(["file", "file", "file", "folder", "fifo", "link up", "link", "dangling"])
TREES = st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=4), KINDS), max_size=14)


def make(root: Path, tree: list[tuple[list[bytes], str]]) -> None:
    for parts, kind in tree:
        path = root.joinpath(*map(os.fsdecode, parts))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "file":
                path.touch()
            elif kind == "folder":
                path.mkdir()
            elif kind == "fifo":
                os.mkfifo(path)
            else:
                path.symlink_to({"link up": path.parent, "link": root / "a"}.get(kind, "nowhere"))
        except OSError:  # a part is a file already, or a link to nowhere
            continue


@settings(max_examples=60, deadline=None)
@given(tree=TREES, is_clip=st.booleans())
def test_every_file_of_any_tree_is_a_clip_or_named(
    tree: list[tuple[list[bytes], str]], is_clip: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make(root, tree)
        listing = walk(root, is_clip)
        reasons = (*listing.left_out.values(), *listing.unusable.values())
        problems = listing.frame_folders.values()
        named = {*listing.clips, *listing.left_out, *listing.unusable, *listing.own}
        "".join((*named, *reasons, *problems)).encode()  # all of it can be written
        named = set(map(printable, named))
        for path in root.rglob("*"):
            name = path.relative_to(root).as_posix()
            is_hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_dir() or is_hidden:  # what is in linked folders is there as well
                continue
            parts = printable(name).split("/")
            above = {"/".join(parts[:number]) for number in range(len(parts) + 1)}
            assert above & named or (len(parts) == 1 and "." in named), name


def test_a_directory_that_is_none_is_refused_in_one_line(tmp_path: Path) -> None:
    touch(tmp_path, "file")
    for name in ("file", "nowhere", "x" * 300, "file/inside"):
        with pytest.raises(UserError, match=r"^data_path: .*\. Needed: a directory\.$") as raised:
            walk(tmp_path / name)
        assert "\n" not in str(raised.value)
