"""Damaged videos are used while few frames are lost, and say what is; odd ones as people want."""

from contextlib import suppress
from pathlib import Path

import av
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.picture import Orientation, Squarer
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.media.video import Segment, sample_video
from tests.helpers.videos import bare_decode, encode, moving


def damage(content: bytes, packets: list[tuple[int, int]]) -> bytes:
    """The content with zeros in place of some packets."""
    damaged = bytearray(content)
    for position, size in packets:
        damaged[position : position + size] = bytes(size)
    return bytes(damaged)


def positions(path: Path) -> list[tuple[int, int]]:
    """Where each packet of a video is."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mjpeg")])
def test_a_damaged_video_is_used_up_to_a_share_of_bad_frames(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = tmp_path / f"x{suffix}"
    pix_fmt, options = ("yuvj420p", None) if codec == "mjpeg" else ("yuv420p", {"bf": "0"})
    encode(path, moving(40), codec, pix_fmt=pix_fmt, codec_options=options)
    whole, places = path.read_bytes(), positions(path)
    content = damage(whole, places[20:23])
    sampled = sample_video(content, 40)
    assert (sampled.num_bad, sampled.num_frames) == (3, 40)
    assert sampled.note.startswith("3 of 40 frames cannot be decoded")
    if codec == "mjpeg":  # whose frames do not need one another
        everything = bare_decode(path)
        sound = np.delete(everything, [20, 21, 22], axis=0)
        np.testing.assert_array_equal(sampled.frames, sound[uniform_indices(37, 40)])
    with pytest.raises(UserError, match=r"3 of 40 frames \(8%\) cannot.* at most 5% \(max_bad_fr"):
        sample_video(content, 4, max_bad_frames=0.05)
    with pytest.raises(UserError, match=r"is damaged: 8 of 40 frames \(20%\)"):
        sample_video(damage(whole, places[14:22]), 4)  # after a key frame
    assert sample_video(damage(whole, places[14:22]), 4, max_bad_frames=0.2).num_bad == 8
    np.testing.assert_array_equal(sampled.frames, sample_video(content, 40).frames)


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_a_hole_in_a_container_without_an_index_counts(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    encode(path, moving(60), "mjpeg", pix_fmt="yuvj420p")
    content, places = path.read_bytes(), positions(path)
    start, end = places[30][0], places[33][0]
    sampled = sample_video(content[:start] + bytes(end - start) + content[end:], 4)
    assert 3 <= sampled.num_bad <= 6
    assert sampled.num_frames == 60
    start, end = places[30][0], places[50][0]
    with pytest.raises(UserError, match="is damaged"):
        sample_video(content[:start] + bytes(end - start) + content[end:], 4)


def test_a_segment_of_a_video_that_shows_no_frame_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.webm"
    encode(path, moving(30), "libvpx", codec_options={"deadline": "realtime", "cpu-used": "8"})
    content = path.read_bytes()
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    for data in packets:  # a bit of VP8 says whether the frame is shown
        content = content.replace(data, bytes([data[0] & ~0x10]) + data[1:])
    with pytest.raises(UserError, match=r"is damaged|has no frames"):
        sample_video(content, 4, segment=Segment(0, 1))


def test_a_frame_of_which_a_part_is_missing_is_avoided_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(60))
    place, size = positions(path)[40]
    content = damage(path.read_bytes(), [(place + size // 2, size - size // 2)])
    sampled = sample_video(content, 60)
    assert (sampled.num_bad, sampled.note) == (0, "1 of 60 frames are damaged")
    segment = sample_video(content, 10, segment=Segment(38, 47, "frames"))
    assert (segment.num_bad, segment.note) == (0, "1 of 10 frames are damaged")


def test_a_segment_with_a_hole_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    encode(path, moving(100), "mjpeg", pix_fmt="yuvj420p")
    places = positions(path)
    hole = (places[50][0], places[53][0] - places[50][0])
    content = damage(path.read_bytes(), [hole])
    # The frames around the hole are sound, and those alone would be asked for.
    sampled = sample_video(content, 2, segment=Segment(1, 3), max_bad_frames=0.2)
    assert 3 <= sampled.num_bad <= 6
    assert sampled.note.startswith(f"{sampled.num_bad} of 50 frames")


def test_a_segment_is_judged_by_its_own_frames(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(60), "libx264", codec_options={"bf": "0"})
    content = damage(path.read_bytes(), positions(path)[50:55])
    first = sample_video(content, 4, segment=Segment(0, 1))
    assert (first.num_frames, first.num_bad, first.note) == (25, 0, "")
    with pytest.raises(UserError, match=r"5 of 20 frames \(25%\)"):
        sample_video(content, 4, segment=Segment(1.6, 2.4))


ODD = Path(__file__).parents[3] / "shared" / "data" / "odd_videos"


@pytest.mark.skipif(not ODD.is_dir(), reason="needs the odd videos")
def test_odd_videos_are_used_or_refused_as_people_want() -> None:
    [sampled, refused] = [{}, {}]
    for path in sorted(ODD.glob("odd_*")):
        try:
            sampled[path.stem[4:]] = sample_video(path, 4)
        except UserError as error:
            refused[path.stem[4:]] = str(error)
    assert refused == {"34": f"{ODD}/odd_34.mp4 is truncated: 1.2 of 23.6 s are there."}
    assert {n: (s.num_frames, s.num_bad) for n, s in sampled.items()} == {
        **{"05": (46, 0), "13": (30, 0), "21": (50, 1), "22": (182, 12), "32": (300, 0)},
        **{"55": (71, 0), "58": (390, 0), "59": (60, 0)},
    }
    assert [n for n, s in sampled.items() if s.note] == ["21", "22"]


@pytest.mark.skipif(not ODD.is_dir(), reason="needs the odd videos")
def test_frames_that_the_decoder_calls_corrupt_are_avoided() -> None:
    square, sound = Squarer(336, None, Orientation()), []
    with av.open(str(ODD / "odd_22.mp4")) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0):
            with suppress(av.FFmpegError):
                sound += [square(frame) for frame in packet.decode() if not frame.is_corrupt]
    assert len(sound) == 142
    expected = np.stack(sound)[uniform_indices(142, 16)]
    sampled = sample_video(ODD / "odd_22.mp4", 16)
    np.testing.assert_array_equal(sampled.frames, expected)
    assert sampled.note == ("12 of 182 frames cannot be decoded, 28 of 182 frames are damaged")
