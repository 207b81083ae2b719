"""Random directories and tables: nothing sound is lost in silence, and nothing is a traceback.

Each video and frame folder shows one gray level of its own, so the frames of a clip tell which file
they are from.
"""

import csv
import io
import os
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.prepare import Prepared, prepare
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.errors import is_utf8, printable
from k400tiny_lib.media.frames import decode_frame, frame_files

UNUSABLE = -1  # in place of a gray level
_STEP = 9  # gray levels between two files; compression changes them by less than half of it
_BASE = ("class b/one", *(f"class a/{name}" for name in ("two", "three", "four", "five")))
_SETTINGS = settings(
    max_examples=int(os.environ.get("K400TINY_EXAMPLES", "8")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # an example takes a second: no shrinking
)

_NAMES = st.one_of(
    st.sampled_from([b"a", b"b", b"A", b"a b", b"a.b", b"caf\xc3\xa9", b"cafe\xcc\x81", b"x,y"]),
    st.sampled_from([b"caf\xe9", b"new\nline", b" a", b"a ", b'"', b"%20", b"train", b"\xff\xfe"]),
    st.binary(min_size=1, max_size=5).map(
        lambda raw: raw.replace(b"/", b"-").replace(b"\0", b"-").replace(b".", b"-")
    ),
)
_SUFFIXES = st.sampled_from(
    [b".mp4", b".MP4", b".mkv", b".m4v", b".mpg", b".mp4.mp4", b".xyz", b""]
)
_KINDS = st.sampled_from(
    ["video"] * 4
    + ["frames"] * 2
    + ["broken video", "empty folder", "text", "picture", "pipe", "link to nowhere"]
    + ["link to one", "link to a class", "link to the root"]
)
_ENTRIES = st.lists(
    st.tuples(st.lists(_NAMES, min_size=1, max_size=3), _SUFFIXES, _KINDS), max_size=7
)


@dataclass
class Tree:
    """What was written: the gray level of each path that could be a clip, links included."""

    root: Path
    clips: dict[str, int] = field(default_factory=dict)
    level: int = 0


@cache
def video(level: int) -> bytes:
    """Three frames of one gray level as the bytes of an MP4 file."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=12)
        stream.height = stream.width = 32
        stream.pix_fmt = "yuv420p"
        image = np.full((32, 32, 3), level, np.uint8)
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


@cache
def picture(level: int) -> bytes:
    return cv2.imencode(".png", np.full((32, 32, 3), level, np.uint8))[1].tobytes()


def write_entry(tree: Tree, path: str, kind: str) -> None:
    """Write one entry, unless its place is taken; the path is relative to the root."""
    full = tree.root / path
    try:
        full.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        return
    tree.clips.pop(path.rpartition("/")[0], None)  # no longer an empty folder
    if os.path.lexists(full):
        return
    if kind in ("video", "frames"):
        tree.level += _STEP
        tree.clips[path] = tree.level
    if kind in ("broken video", "empty folder"):
        tree.clips[path] = UNUSABLE
    if kind == "video":
        full.write_bytes(video(tree.level))
    elif kind == "frames":
        full.mkdir()
        for number in range(9):
            (full / f"{number}.png").write_bytes(picture(tree.level))
    elif kind == "broken video":
        full.write_bytes(b"no video")
    elif kind == "empty folder":
        full.mkdir()
    elif kind == "text":
        Path(f"{full}.txt").write_bytes(b"text")
    elif kind == "picture":
        Path(f"{full}.jpg").write_bytes(b"picture")
    elif kind == "pipe":
        os.mkfifo(full)
    else:
        targets = {"link to one": next(iter(tree.clips)), "link to a class": "class b"}
        full.symlink_to("/none" if kind == "link to nowhere" else tree.root / targets.get(kind, ""))


def write_tree(root: Path, base: str, entries: list[tuple[list[bytes], bytes, str]]) -> Tree:
    """Five sound clips in two classes, and any entries around them."""
    tree = Tree(root)
    for name in _BASE:
        write_entry(tree, name + (".mp4" if base == "video" else ""), base)
    strays = 0  # of the other kind: a quarter of them would be an error, as it should be
    for parts, suffix, kind in entries:
        if kind in ({"frames", "picture"} if base == "video" else {"video", "broken video"}):
            strays += 1
            kind = base if strays > 1 else kind
        is_file = kind in ("video", "broken video", "pipe", "link to nowhere")
        path = b"/".join(parts) + (suffix if is_file else b"")
        write_entry(tree, os.fsdecode(path), kind)
    return tree


def names_in(prepared: Prepared) -> set[str]:
    """What the report names: dropped, or left out."""
    report = prepared.report
    return {row["video"] for row in report["dropped"]} | set(report["left_out"])


def is_named(path: str, names: set[str]) -> bool:
    """Whether a path, the folder that it is in, or its clip is named.

    Names of clips have no suffix, and no spaces at the ends of their parts.
    """
    ways = {path}
    while folder := path.rpartition("/")[0]:
        ways.add(path := folder)
    ways |= {way.rpartition(".")[0] for way in ways}
    ways |= {"/".join(part.strip() for part in way.split("/")) for way in ways}
    return bool(names & (ways | set(map(printable, ways))))


def shown_levels(prepared: Prepared) -> dict[str, int]:
    """The gray level of each clip; all of its frames have to show the same."""
    levels = {}
    for clip in prepared.annotations.clips:
        files = frame_files(prepared.directory / clip.video)
        values = {round(float(decode_frame(path).mean()) / _STEP) * _STEP for path in files}
        assert len(values) == 1, f"{clip.video} mixes {values}"
        levels[clip.video] = values.pop()
    return levels


def check_nothing_is_lost(tree: Tree, prepared: Prepared) -> None:
    levels = shown_levels(prepared)
    assert set(levels.values()) <= set(tree.clips.values())
    named = names_in(prepared)
    for path, level in tree.clips.items():
        if level not in levels.values():
            assert is_named(path, named), f"{path!r} is neither a clip nor named in {named}"


def prepare_tree(tree: Tree, output_dir: Path, **more: Any) -> Prepared:
    config = Config(
        data_path=str(tree.root),
        output_dir=str(output_dir),
        on_rare_class="train",
        decode_workers=1,
        **more,
    )
    prepared = prepare(config, open_source(config))
    prepared.annotations.to_json().encode()
    return prepared


@given(base=st.sampled_from(["video", "frames"]), entries=_ENTRIES)
@_SETTINGS
def test_every_clip_in_class_folders_is_used_or_named(
    base: str, entries: list[tuple[list[bytes], bytes, str]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = write_tree(Path(folder, "in"), base, entries)
        prepared = prepare_tree(tree, Path(folder, "out"))
        check_nothing_is_lost(tree, prepared)
        again = prepare_tree(tree, Path(folder, "out"))
        assert again.annotations == prepared.annotations
        assert again.report == prepared.report


_HEADERS = {
    "video": ["file", "path", "Video", "filename"],
    "frames": ["folder_name", "path", "clip"],
}
# Ways to write a name; each still means one file where no other has the same stem.
_SPELLINGS = st.sampled_from(["plain", "./", "absolute", "no suffix", "backslash", "spaces"])


def spell(name: str, way: str, root: Path) -> str:
    return {
        "plain": name,
        "./": f"./{name}",
        "absolute": f"{root}/{name}",
        "no suffix": name.removesuffix(".mp4"),
        "backslash": name.replace("/", "\\"),
        "spaces": f"{name} ",
    }[way]


def fits_a_table(path: str) -> bool:
    """Whether a name is text that a table gives back as it is."""
    return is_utf8(path) and path.isprintable() and path == path.strip() and "\\" not in path


@given(
    base=st.sampled_from(["video", "frames"]),
    entries=_ENTRIES,
    rows=st.lists(st.tuples(st.booleans(), _SPELLINGS), min_size=12, max_size=12),
    header=st.integers(0, 2),
    separator=st.sampled_from([",", ";", "\t"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    junk=st.sampled_from(["", "no such clip", "../outside"]),
)
@_SETTINGS
def test_every_clip_is_used_or_named_where_a_table_names_some(
    base: str,
    entries: list[tuple[list[bytes], bytes, str]],
    rows: list[tuple[bool, str]],
    header: int,
    separator: str,
    encoding: str,
    junk: str,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tree = write_tree(Path(folder, "in"), base, entries)
        column = _HEADERS[base][header]
        lines, labels = [[column, "label"]], dict[int, str]()
        for (path, level), (has_row, way) in zip(tree.clips.items(), rows, strict=False):
            is_base = len(labels) < len(_BASE)
            if fits_a_table(path) and (is_base or (has_row and level != UNUSABLE)):
                labels[level] = "x" if len(labels) else "y"
                lines.append([spell(path, way, tree.root), labels[level]])
        lines += [[junk, "x"]] if junk else []
        with Path(folder, "gt.csv").open("w", encoding=encoding, newline="") as file:
            csv.writer(file, delimiter=separator).writerows(lines)
        prepared = prepare_tree(tree, Path(folder, "out"), gt_csv=str(Path(folder, "gt.csv")))
        check_nothing_is_lost(tree, prepared)
        assert not junk or is_named(junk, names_in(prepared))
        levels = shown_levels(prepared)
        by_id = {index: label for label, index in prepared.annotations.categories.items()}
        for clip in prepared.annotations.clips:
            assert by_id[clip.target] == labels[levels[clip.video]]
