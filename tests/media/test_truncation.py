"""A part of a video is never taken for the video, and a whole video never for a part."""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.video import sample_video
from tests.helpers.videos import Unseekable, encode, moving

NUM_FRAMES = 50


@dataclass(frozen=True)
class Kind:
    """A container and how it is written."""

    suffix: str
    codec: str = "mpeg4"
    arguments: dict[str, Any] = field(default_factory=dict)
    is_live: bool = False


_FAST = {"deadline": "realtime", "cpu-used": "8"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
KINDS = {
    "mp4": Kind(".mp4", arguments={"options": {"movflags": "faststart"}}),
    "mp4, index last": Kind(".mp4"),
    "mp4, fragments": Kind(".mp4", "libx264", {"options": _FRAGMENTS}),
    "mov": Kind(".mov", "mjpeg", {"options": {"movflags": "faststart"}, "pix_fmt": "yuvj420p"}),
    "3gp": Kind(".3gp", "mpeg4", {"options": {"movflags": "faststart"}}),
    "avi": Kind(".avi"),
    "avi, without loss": Kind(".avi", "png", {"pix_fmt": "rgb24"}),
    "avi, live": Kind(".avi", is_live=True),
    "mkv": Kind(".mkv", "libx264"),
    "mkv, live": Kind(".mkv", "libx264", {"container": "matroska"}, is_live=True),
    "webm": Kind(".webm", "libvpx", {"codec_options": _FAST}),
    "webm, hidden frames": Kind(
        ".webm", "libvpx", {"codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}
    ),
    "flv": Kind(".flv", "libx264"),
    "flv, live": Kind(".flv", "flv", is_live=True),
    "wmv": Kind(".wmv", "wmv2"),
    "ts": Kind(".ts", "libx264"),
    "m2ts": Kind(".m2ts", "mpeg2video", {"options": {"mpegts_m2ts_mode": "1"}}),
    "mpg": Kind(".mpg", "mpeg1video"),
    "vob": Kind(".vob", "mpeg2video"),
    "ogv": Kind(".ogv", "libvpx", {"codec_options": _FAST}),
    "mxf": Kind(".mxf", "mpeg2video"),
    "gif": Kind(".gif", "gif", {"pix_fmt": "rgb8"}),
    "rm": Kind(".rm", "rv20"),
}
_UNSEEKABLE_FORMATS = {".avi": "avi", ".mkv": "matroska", ".flv": "flv"}


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder, contents = tmp_path_factory.mktemp("whole"), {}
    for name, kind in KINDS.items():
        if kind.is_live:
            file = Unseekable()
            arguments = kind.arguments | {"container": _UNSEEKABLE_FORMATS[kind.suffix]}
            encode(file, moving(NUM_FRAMES, (144, 192)), kind.codec, **arguments)
            contents[name] = bytes(file.content)
        else:
            path = folder / f"x{kind.suffix}"
            encode(path, moving(NUM_FRAMES, (144, 192)), kind.codec, **kind.arguments)
            contents[name] = path.read_bytes()
    return contents


@pytest.mark.parametrize("name", KINDS)
def test_a_whole_video_passes_whatever_follows_it(contents: dict[str, bytes], name: str) -> None:
    for rest in (b"", b"garbage", bytes(500), bytes(range(1, 250)) * 3):
        sampled = sample_video(contents[name] + rest, 2, side=16)
        assert (sampled.num_frames, sampled.num_bad, sampled.note) == (NUM_FRAMES, 0, "")


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", KINDS)
def test_a_part_is_refused(contents: dict[str, bytes], name: str, share: float) -> None:
    content = contents[name]
    # Not between two packets: such a part of a live recording cannot be told from a whole one.
    cut = int(share * len(content)) + 50
    if (
        name == "ogv"
    ):  # the encoder gives other sizes each time; cut 100 bytes behind a page's start
        cut = content.rfind(b"OggS", 0, cut) + 100
    part = content[:cut]
    zeros = bytes(len(content) - len(part))
    # The last twentieth of ASF is its index, and zeros that fill a packet up.
    is_content = (name, share) != ("wmv", 0.95)
    for damaged in (part, part + zeros) if is_content else (part,):
        with pytest.raises(UserError, match="is truncated") as caught:
            sample_video(damaged, 2, side=16, max_bad_frames=0.9)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mp4", "avi", "mkv", "flv", "webm", "mxf"])
def test_a_part_that_ends_between_two_packets_is_refused(
    contents: dict[str, bytes], name: str
) -> None:
    content = contents[name]
    with av.open(io.BytesIO(content)) as container:
        starts = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    part = content[: starts[len(starts) // 2]]
    for damaged in (part, part + bytes(len(content) - len(part))):
        with pytest.raises(UserError, match="is truncated"):
            sample_video(damaged, 2, side=16)


def test_the_end_of_a_short_video_is_missed(tmp_path: Path) -> None:
    encode(tmp_path / "x.flv", moving(25), "libx264", codec_options={"bf": "0"})
    content = (tmp_path / "x.flv").read_bytes()
    with av.open(io.BytesIO(content)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    for number in (10, 16):
        with pytest.raises(UserError, match=r"is truncated: 0\.\d of 1\.0 s are there"):
            sample_video(content[: starts[number]], 2, side=16)


@pytest.mark.parametrize(("name", "block"), [("ts", 188), ("m2ts", 192), ("mpg", 2048)])
def test_zeros_after_a_whole_block_are_no_video(
    contents: dict[str, bytes], name: str, block: int
) -> None:
    content = contents[name]
    part = content[: len(content) // 2 // block * block]
    with pytest.raises(UserError, match="is truncated"):
        sample_video(part + bytes(len(content) - len(part)), 2, side=16)


def test_an_impossible_length_is_one_of_a_file_that_is_cut(contents: dict[str, bytes]) -> None:
    content = contents["mxf"]
    at = content.index(bytes.fromhex("060e2b34020501010d0102010102")) + 16  # the partition's length
    footer = at + 1 + (content[at] & 0x7F) + 24
    with pytest.raises(UserError, match="is truncated"):
        sample_video(content[:footer] + b"\xff" * 8 + content[footer + 8 :], 2)


def test_a_file_that_was_reserved_and_never_filled_is_truncated() -> None:
    with pytest.raises(UserError, match="is truncated: its index or most of it is missing"):
        sample_video(bytes(100_000), 2)


def test_zeros_that_are_marked_as_filling_are_no_truncation(contents: dict[str, bytes]) -> None:
    avi, filling = contents["avi"], b"JUNK" + (600).to_bytes(4, "little") + bytes(600)
    longer = avi[:4] + (len(avi) - 8 + len(filling)).to_bytes(4, "little") + avi[8:] + filling
    assert sample_video(longer, 2, side=16).num_frames == NUM_FRAMES
    mkv = contents["mkv"]
    at = mkv.index(bytes.fromhex("18538067")) + 4  # of the size of the segment, in 8 bytes
    filling = b"\xec" + (0x4000 | 600).to_bytes(2, "big") + bytes(600)
    size = int.from_bytes(mkv[at + 1 : at + 8], "big") + len(filling)
    longer = mkv[: at + 1] + size.to_bytes(7, "big") + mkv[at + 8 :] + filling
    assert sample_video(longer, 2, side=16).num_frames == NUM_FRAMES


def test_the_message_says_how_much_is_there(contents: dict[str, bytes]) -> None:
    content = contents["mkv"]
    with pytest.raises(UserError, match=r"is truncated: 0\.\d of 2\.0 s are there\."):
        sample_video(content[: len(content) // 3], 2)
    content = contents["gif"]
    with pytest.raises(UserError, match=r"is truncated: .* are there\."):
        sample_video(content[: len(content) // 3], 2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".flv", ".ts"])
def test_sound_that_is_longer_than_the_pictures_is_no_truncation(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    encode(path, moving(25), "libx264", seconds_of_sound=3)
    assert sample_video(path, 2, side=16).num_frames == 25
    content = path.read_bytes()
    with pytest.raises(UserError, match="is truncated"):
        sample_video(content[: int(0.97 * len(content)) - 1], 2)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".wmv", ".flv"])
def test_uneven_times_are_no_truncation(tmp_path: Path, suffix: str) -> None:
    codec = "wmv2" if suffix == ".wmv" else "mpeg4" if suffix != ".flv" else "libx264"
    times = [50 + n + n * n // 7 for n in range(25)]
    path = tmp_path / f"x{suffix}"
    encode(path, moving(25), codec, times=times)
    sampled = sample_video(path, 2, side=16)
    assert (sampled.num_frames, sampled.note) == (25, "")


def test_transport_streams_that_were_joined_are_whole(tmp_path: Path) -> None:
    encode(tmp_path / "x.ts", moving(24), "libx264")
    content = (tmp_path / "x.ts").read_bytes()
    cut = len(content) // 188 // 2 * 188
    joined = content + content[188 * 3 : cut] + content[cut + 188 :] + content
    # The counter of each stream jumps where the parts meet.
    sampled = sample_video(joined, 2, side=16)
    assert sampled.num_frames >= 48
