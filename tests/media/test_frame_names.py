"""Which pictures of a folder are frames, and in which order: the same for every step."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.readers import ImageFiles
from k400tiny_lib.data.preparation.validation import check_clip
from k400tiny_lib.media.frame_names import choose_frames, natural_order
from k400tiny_lib.media.frames import clip_digest, frame_files, read_images
from k400tiny_lib.serving.predict import read_clip
from tests.conftest import write_clip


def numbered(pattern: str, count: int = 12) -> list[str]:
    return [pattern.format(number) for number in range(1, count + 1)]


@pytest.mark.parametrize(
    "names",
    [
        *[numbered(p) for p in ("frame{:02d}.jpg", "frame-{}.png", "-{:04d}.jpg", "a1.{}.jpeg")],
        ["0.25.jpg", "0.5.jpg", "0.75.jpg", "1.0.jpg"],
        ["0.jpg", "0.5.jpg", "1.jpg", "1.25.jpg", "10.jpg"],
        ["-10.png", "-2.png", "-1.png", "0.png", "1.png"],
        ["-3.png", "-2.png", "-1.png"],
        ["-0.5.png", "-0.25.png", "0.png", "0.25.png"],
        ["t_0.25s.jpg", "t_0.5s.jpg", "t_1.0s.jpg"],
        ["1.1.jpg", "1.2.jpg", "1.9.jpg", "1.10.jpg", "1.11.jpg"],  # counters
        ["a.jpg", "cover.jpg", "flow.png"],  # no numbers: nothing tells what else they are
    ],
)
def test_names_are_ordered_as_people_count(names: list[str]) -> None:
    shuffled = random.Random(0).sample(names, len(names))
    chosen = choose_frames(shuffled)
    assert (chosen.frames, chosen.left_out, chosen.patterns) == (names, {}, {})


@given(
    prefix=st.text(st.characters(codec="ascii", exclude_characters="/\0.+-"), max_size=6),
    numbers=st.sets(st.integers(0, 10**6), min_size=1, max_size=30),
    width=st.integers(0, 5),
)
def test_ordinary_names_keep_their_natural_order(
    prefix: str, numbers: set[int], width: int
) -> None:
    names = [f"{prefix}{number:0{width}d}.jpg" for number in numbers]
    assert choose_frames(names).frames == sorted(names, key=natural_order)


FRAMES = numbered("img_{:05d}.jpg", 3)


@pytest.mark.parametrize(
    ("others", "kind"),
    [
        ([*numbered("flow_x_{:05d}.jpg"), *numbered("flow_y_{:05d}.jpg")], "optical flow"),
        ([*numbered("x_{:05d}.jpg"), *numbered("y_{:05d}.jpg")], "optical flow"),
        ([*numbered("{:05d}_u.png"), *numbered("{:05d}_v.png")], "optical flow"),
        (numbered("img_{:05d}_flow.jpg"), "optical flow"),
        (numbered("depth{:05d}.png"), "depth map"),
        (["thumbnail.jpg"], "thumbnail"),
        (["Thumb.JPG", "preview.png", "cover.jpg", "poster.jpeg"], "thumbnail"),
        (numbered("img_{:05d}.png", 2), "second format of a frame"),
    ],
)
def test_pictures_that_accompany_numbered_frames_are_left_out(others: list[str], kind: str) -> None:
    chosen = choose_frames(random.Random(0).sample(FRAMES + others, len(FRAMES + others)))
    assert chosen.frames == FRAMES
    assert chosen.left_out == dict.fromkeys(others, kind)
    assert chosen.patterns == {}
    # Alone they are the frames.
    if kind != "second format of a frame":
        assert sorted(choose_frames(others).frames) == sorted(others)


def test_several_patterns_are_all_frames_and_counted() -> None:
    chosen = choose_frames(numbered("a{:03d}.jpg", 2) + numbered("b{:03d}.jpg", 3))
    assert chosen.frames == ["a001.jpg", "a002.jpg", "b001.jpg", "b002.jpg", "b003.jpg"]
    assert chosen.patterns == {"a#": 2, "b#": 3}
    # x without y is no optical flow.
    alone = choose_frames(numbered("img{}.jpg", 2) + numbered("x{}.jpg", 2))
    assert (len(alone.frames), alone.left_out) == (4, {})
    mixed_suffixes = ["f1.jpg", "f2.png", "f3.jpg"]
    assert choose_frames(mixed_suffixes).frames == mixed_suffixes
    assert choose_frames(mixed_suffixes).patterns == {}


def test_every_reader_of_a_clip_has_the_same_frames(tmp_path: Path) -> None:
    clip, plain = tmp_path / "clip", tmp_path / "plain"
    write_clip(clip, seed=0)
    write_clip(plain, seed=0)
    names = [path.name for path in frame_files(plain)]
    for name in names:
        for axis in "xy":
            (clip / f"flow_{axis}_{name}").write_bytes((plain / names[0]).read_bytes())
    (clip / "thumbnail.jpg").write_bytes((plain / names[0]).read_bytes())
    assert [path.name for path in frame_files(clip)] == names
    assert clip_digest(clip) == clip_digest(plain) == check_clip(clip).digest
    assert check_clip(clip).left_out == {"optical flow": 2 * len(names), "thumbnail": 1}
    offsets = list(range(len(names)))
    assert (read_images(clip, offsets) == read_images(plain, offsets)).all()
    assert (read_clip(clip, len(names)).frames == read_clip(plain, len(names)).frames).all()
    read = ImageFiles(tmp_path, 32)
    segment = (0, len(names) - 1)
    loaded = [read(Clip(name, segment, 0, name), offsets) for name in ("clip", "plain")]
    assert loaded[0].equal(loaded[1])
