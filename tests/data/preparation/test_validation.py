"""Every kind of damage is found and named; a good clip stays good; unchanged ones are not read."""

import os
from io import BytesIO
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.data.preparation import validation
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.validation import check_clip, check_clips, check_frame
from k400tiny_lib.media.frames import clip_digest
from tests.conftest import write_clip
from tests.helpers.damages import DAMAGES, cut


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_named(damage: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", seed=0)
    assert check_clip(tmp_path / "clip").problem == ""
    spoil, reason = DAMAGES[damage]
    spoil(tmp_path / "clip" / "frame02.jpg")
    assert check_clip(tmp_path / "clip").problem.startswith(reason)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_file_cut_anywhere_is_refused_as_pil_refuses_it(suffix: str) -> None:
    # PIL, which we did not write, is the reference: it raises where OpenCV paints grey.
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    content = cv2.imencode(suffix, cv2.GaussianBlur(noise, (0, 0), 3))[1].tobytes()
    assert check_frame(content) == ((64, 64), "")
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    for length in range(1, len(content) - 12, 37):
        assert check_frame(content[:length])[1], f"cut to {length} of {len(content)} bytes"
        # What a power loss leaves: the right length, and zeros at the end.
        assert check_frame(content[:length].ljust(len(content), b"\0"))[1]


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_progressive_grey_and_trailing_bytes_are_fine(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    Image.new(mode, (20, 10)).save(path, progressive=True)
    assert check_frame(path.read_bytes() + b"maker notes") == ((10, 20), "")


def test_the_digest_is_that_of_content_and_names_do_not_count_for_what_a_clip_shows(
    tmp_path: Path,
) -> None:
    write_clip(tmp_path / "a", seed=1)
    write_clip(tmp_path / "b", seed=1)
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_name(path.name.replace("frame", "image")))
    a, b = check_clip(tmp_path / "a"), check_clip(tmp_path / "b")
    assert (a.digest, b.digest) == (clip_digest(tmp_path / "a"), clip_digest(tmp_path / "b"))
    assert a.content_digest == b.content_digest
    assert a.digest != b.digest


def test_unchanged_clips_are_not_read_again_and_changed_ones_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        write_clip(tmp_path / "data" / name, seed=ord(name))
    index = ContentIndex(tmp_path / "index.sqlite")
    read: list[str] = []

    def counting(folder: Path) -> validation.ClipCheck:
        read.append(folder.name)
        return check_clip(folder)

    monkeypatch.setattr(validation, "check_clip", counting)
    first = check_clips(tmp_path / "data", "abc", index)
    assert sorted(read) == ["a", "b", "c"]
    assert check_clips(tmp_path / "data", "abc", index) == first
    assert len(read) == 3
    # A new time alone is looked into, and found to mean nothing.
    os.utime(tmp_path / "data" / "b" / "frame03.jpg", (0, 0))
    assert check_clips(tmp_path / "data", "abc", index) == first
    assert read[3:] == ["b"]
    # A frame overwritten in place does not change the folder's own time.
    cut(tmp_path / "data" / "c" / "frame03.jpg")
    assert check_clips(tmp_path / "data", "abc", index)["c"].problem == "frame03.jpg is truncated"
    assert read[4:] == ["c"]


def test_a_link_is_followed(tmp_path: Path) -> None:
    write_clip(tmp_path / "outside", seed=0)
    write_clip(tmp_path / "data" / "a", seed=1)
    (tmp_path / "data" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "data" / "in").symlink_to("a")
    checks = check_clips(
        tmp_path / "data", ["a", "out", "in", "gone"], ContentIndex(tmp_path / "index.sqlite")
    )
    assert {name: check.problem for name, check in checks.items()} == {
        "a": "",
        "in": "",
        "out": "",
        "gone": "no such folder",
    }


def test_a_spoilt_index_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    path.write_bytes(b"no database" * 1000)
    ContentIndex(path).save("root", [("a", "s", "f")])
    assert ContentIndex(path).load("root") == {"a": ("s", "f")}


def _save_many(path: Path, name: str) -> None:
    index = ContentIndex(path)
    for number in range(50):
        index.save("root", [(f"{name}{number}", "s", "f")])


def test_two_processes_write_one_index(tmp_path: Path) -> None:
    path = tmp_path / "index.sqlite"
    context = get_context("fork")
    writers = [context.Process(target=_save_many, args=(path, name)) for name in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(ContentIndex(path).load("root")) == 100


def multi_picture(size: int = 64) -> tuple[bytes, int]:
    """A JPEG of two pictures as cameras write them, and where the second begins."""
    noise = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    image, file = Image.fromarray(noise), BytesIO()
    image.save(file, "MPO", save_all=True, append_images=[image.rotate(90)])
    content = file.getvalue()
    return content, content.rindex(b"\xff\xd8\xff")


@pytest.mark.parametrize("tail", [b"", bytes(4096), b"\xff" * 9, b"SEFH\xff\xda\xff\xd8 trailer"])
def test_further_pictures_and_trailers_of_a_jpeg_are_fine(tail: bytes) -> None:
    content, second = multi_picture()
    for whole in (content, content[:second]):
        assert check_frame(whole + tail) == ((64, 64), "")


def test_a_multi_picture_jpeg_cut_anywhere_is_refused() -> None:
    content, second = multi_picture()
    for length in range(1, len(content) - 1, 97):
        if length != second:
            assert check_frame(content[:length])[1], f"cut to {length} of {len(content)}"
            assert check_frame(content[:length].ljust(len(content), b"\0"))[1]
    # A trailer cannot stand for the end of a picture, nor an end marker within it.
    assert check_frame(content[: second - 50] + b"\xff\xfe\x00\x06\xff\xd9  " + bytes(9))[1]


def test_a_multi_picture_jpeg_is_read_like_any_jpeg(tmp_path: Path) -> None:
    content, _ = multi_picture(256)
    for name, number in product(("multi", "plain"), range(2)):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / f"frame{number}.jpg").write_bytes(content)
    for path in (tmp_path / "plain").iterdir():
        path.write_bytes(content[: content.rindex(b"\xff\xd8\xff")].replace(b"MPF\0", b"XPF\0"))
        with Image.open(path) as image:
            assert image.format == "JPEG"
    read = ImageFiles(tmp_path, 64)
    clips = [read(Clip(name, (0, 1), 0, ""), [0, 1]) for name in ("multi", "plain")]
    assert clips[0].equal(clips[1])
    assert check_clip(tmp_path / "multi").problem == ""
