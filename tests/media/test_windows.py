"""Windows of a video: the frames of `sample_video`, each decoded once, few in memory."""

import gc
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.video import Segment, sample_video
from k400tiny_lib.media.windows import reading, timing
from k400tiny_lib.media.windows.reading import Window, WindowReader
from tests.helpers.videos import encode, moving
from tests.media.test_damage import damage, positions

SIDE = 32
FORMATS = {
    ".mp4": "libx264",
    ".avi": "mpeg4",
    ".mkv": "libx264",
    ".ts": "mpeg2video",
    ".flv": "flv",
    ".wmv": "wmv2",
    ".mpg": "mpeg1video",
}


def read(path: Path, window: float, stride: float, clip_len: int = 4, **more: Any) -> list[Window]:
    return list(WindowReader(path, window, stride, clip_len, side=SIDE, **more))


def limits_of(path: Path, window: float, stride: float) -> list[tuple[float, float]]:
    return [(round(w.start, 3), round(w.end, 3)) for w in read(path, window, stride)]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("window", "stride", "views"), [(0.5, 0.2, 1), (0.7, 0.7, 3)])
def test_the_frames_of_a_window_are_those_of_sampling_that_segment(
    tmp_path: Path, suffix: str, window: float, stride: float, views: int
) -> None:
    path = tmp_path / f"x{suffix}"
    encode(path, moving(52, (48, 64)), FORMATS[suffix], pixel_aspect=Fraction(4, 3))
    everything = read(path, window, stride, views=views)
    assert len(everything) == {0.2: 9, 0.7: 3}[stride]
    for start, end, frames in everything:
        segment = Segment(round(start, 6), round(end, 6))
        expected = sample_video(path, 4, views=views, side=SIDE, segment=segment)
        np.testing.assert_array_equal(frames, expected.frames)


def test_windows_go_by_the_time_stamps_of_frames_at_a_varying_rate(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    # 25 a second, then one in half a second, then none for three seconds.
    times = [*range(25), 25, 37, 50, 125, 126, 127]
    encode(path, moving(len(times), (48, 64)), "libx264", times=times)
    everything = read(path, 1, 1)
    assert [w.start for w in everything] == [0, 1, 2, 3, 4, pytest.approx(4.12, abs=0.01)]
    for start, end, frames in everything[:2]:
        expected = sample_video(path, 4, side=SIDE, segment=Segment(start, end)).frames
        np.testing.assert_array_equal(frames, expected)
    # A frame is shown until the next one is.
    last_shown = everything[2].frames[-1]
    for still in everything[3:5]:
        assert (still.frames == last_shown).all()


def test_the_end_of_a_video_is_in_a_whole_window(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(60, (32, 32)))  # 2.4 s
    assert limits_of(path, 1, 0.5) == [(0, 1), (0.5, 1.5), (1, 2), (1.4, 2.4)]
    assert limits_of(path, 0.8, 0.8) == [(0, 0.8), (0.8, 1.6), (1.6, 2.4)]
    assert limits_of(path, 0.8, 0.7) == [(0, 0.8), (0.7, 1.5), (1.4, 2.2), (1.6, 2.4)]
    for longer in (2.4, 2.41, 1e9):
        assert limits_of(path, longer, longer / 2) == [(0, 2.4)]


def test_a_frame_is_decoded_once_whatever_the_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(80, (32, 32)), "libx264")
    times = []
    demux = timing.demux

    def counted(*args: Any) -> Iterator[Any]:
        for packet in demux(*args):
            times.append(packet.pts)
            yield packet

    monkeypatch.setattr(timing, "demux", counted)
    assert len(read(path, 1, 0.1, views=2)) == 23
    assert len(times) == 80 + 1  # and the empty one at the end
    assert len(set(times)) == 81


def peak(path: Path) -> int:
    """Bytes of Python and NumPy while all windows are read."""
    gc.collect()
    tracemalloc.start()
    for _ in WindowReader(path, 0.5, 0.25, 8, side=112):
        pass
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path: Path) -> None:
    for name, num_frames in (("short", 50), ("long", 500)):
        encode(tmp_path / f"{name}.mp4", moving(num_frames, (32, 32)))
    peak(tmp_path / "short.mp4")  # what is made once
    short, long = (peak(tmp_path / f"{name}.mp4") for name in ("short", "long"))
    frame = 112 * 112 * 3
    assert short > 8 * frame
    assert long < short + 4 * frame  # the index: half a kilobyte a frame


@pytest.mark.parametrize(("suffix", "codec"), [(".mp4", "libx264"), (".avi", "mjpeg")])
def test_a_damaged_video_is_used_up_to_a_share_of_bad_frames(
    tmp_path: Path, suffix: str, codec: str
) -> None:
    path = tmp_path / f"x{suffix}"
    pix_fmt, options = ("yuvj420p", None) if codec == "mjpeg" else ("yuv420p", {"bf": "0"})
    encode(path, moving(100, (48, 64)), codec, pix_fmt=pix_fmt, codec_options=options)
    whole = read(path, 1, 0.5)
    path.write_bytes(damage(path.read_bytes(), positions(path)[80:83]))
    reader = WindowReader(path, 1, 0.5, 4, side=SIDE)
    everything = list(reader)
    assert [w[:2] for w in everything] == [w[:2] for w in whole]
    for number in range(5):  # before the damage
        np.testing.assert_array_equal(everything[number].frames, whole[number].frames)
    assert reader.timing.note.startswith("3 of 100 frames cannot be decoded")
    assert reader.timing.note == sample_video(path, 4).note
    for read_again in (lambda: read(path, 1, 0.5, max_bad_frames=0.02), lambda: sample(path)):
        with pytest.raises(UserError, match=r"is damaged: 3 of 100 frames \(3%\)"):
            read_again()


def sample(path: Path) -> None:
    sample_video(path, 4, max_bad_frames=0.02)


def test_a_video_whose_packets_are_not_its_frames_is_read_by_its_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(50, (48, 64)))
    expected = read(path, 1, 0.5)
    index_video = reading.index_video

    def two_packets_a_frame(video: Path) -> Any:  # the fields of an interlaced video
        index = index_video(video)
        times = np.sort(np.concatenate([index.times, index.times + index.step // 2]))
        return replace(index, times=times)

    monkeypatch.setattr(reading, "index_video", two_packets_a_frame)
    actual = read(path, 1, 0.5)
    assert [w[:2] for w in actual] == [w[:2] for w in expected]
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)


def test_what_is_no_video_is_refused_before_the_first_window(tmp_path: Path) -> None:
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(UserError, match="no video is found in it"):
        WindowReader(tmp_path / "x.mp4", 1, 1, 4)
    encode(tmp_path / "one.mp4", moving(1, (32, 32)))
    with pytest.raises(UserError, match=r"has one frame\. Needed: at least 2"):
        WindowReader(tmp_path / "one.mp4", 1, 1, 4)
