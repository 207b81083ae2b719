"""Frames of video files: the right ones, sought or decoded in order, or one line of refusal."""

import gc
import pickle
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.opening import demux
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.media.video import (
    VIDEO_SUFFIXES,
    Image,
    Segment,
    index_video,
    is_video,
    sample_video,
)
from tests.helpers.videos import bare_decode, encode, moving, write_video, write_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def read_video(video: Path | bytes, num_frames: int) -> Image:
    return sample_video(video, num_frames).frames


def test_frames_are_the_ones_that_uniform_indices_names(videos: Path) -> None:
    frames = read_video(videos / "v4.mp4", 5)
    assert frames.shape == (5, 336, 336, 3)
    gray = frames.mean((1, 2, 3))
    # MPEG-4 moves a gray by a few of 255; less than half the step of 20 tells neighbors apart.
    np.testing.assert_allclose(gray, 20 * uniform_indices(11, 5), atol=9, rtol=0)


def test_frames_agree_with_decoding_everything(videos: Path) -> None:
    everything = bare_decode(videos / "v5.avi")
    expected = everything[uniform_indices(len(everything), 7)]
    np.testing.assert_array_equal(read_video(videos / "v5.avi", 7), expected)


def test_a_long_video_gives_the_frames_of_decoding_everything(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, num_frames=3100, size=(16, 16))
    expected = bare_decode(path)[uniform_indices(3100, 5)]
    np.testing.assert_array_equal(read_video(path, 5), expected)


def test_a_video_shorter_than_the_clip_repeats_frames(videos: Path) -> None:
    assert len(read_video(videos / "v0.mp4", 40)) == 40


def test_a_list_of_other_files_is_no_video(videos: Path) -> None:
    playlist = videos.parent / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {videos.name}/v0.mp4\n")
    with av.open(str(playlist)) as container:  # FFmpeg opens what it names
        assert len(list(container.decode(video=0))) == 3
    for source in (playlist, playlist.read_bytes()):
        with pytest.raises(UserError, match="is a list of other files"):
            read_video(source, 4)


def test_tags_in_another_encoding_are_no_reason(tmp_path: Path) -> None:
    for suffix in (".avi", ".mp4", ".mkv"):
        path = tmp_path / f"x{suffix}"
        with av.open(str(path), "w") as container:
            container.metadata["title"] = "caf@"
            stream = container.add_stream("mpeg4", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 32, "yuv420p"
            for picture in moving(4, (32, 32)):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))
        content = path.read_bytes()
        assert b"caf@" in content
        assert len(read_video(content.replace(b"caf@", b"caf\xe9"), 2)) == 2


def test_a_newer_pyav_without_the_argument_for_tags_is_served(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = av.open

    def newer(file: object, *, options: dict[str, str]) -> object:
        return real(file, options=options)

    monkeypatch.setattr(av, "open", newer)
    assert len(read_video(videos / "v0.mp4", 2)) == 2


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_is_that_of_a_video_in_any_case(suffix: str) -> None:
    assert is_video(f"a{suffix}")
    assert is_video(f"class/b{suffix.upper()}")
    assert not is_video(f".c{suffix}")


CODECS = {".wmv": "wmv2", ".mpg": "mpeg1video", ".flv": "flv", ".gif": "gif", ".3gp": "h263"}


@pytest.mark.parametrize(
    "suffix",
    [
        ".m4v",
        ".mpg",
        ".mpeg",
        ".vob",
        ".wmv",
        ".asf",
        ".flv",
        ".3gp",
        ".3g2",
        ".ts",
        ".mts",
        ".m2ts",
        ".ogv",
        ".gif",
        ".mxf",
        ".mov",
    ],
)
def test_containers_of_many_suffixes_give_the_frames_of_the_bare_decoder(
    tmp_path: Path, suffix: str
) -> None:
    codec = CODECS.get(suffix, "mpeg2video" if suffix in (".vob", ".mxf") else "mpeg4")
    codec = {".ogv": "libvpx", ".asf": "wmv2", ".mpeg": "mpeg2video"}.get(suffix, codec)
    path = tmp_path / f"x{suffix}"
    size = (144, 176) if suffix == ".3gp" else (96, 128)
    pix_fmt = "rgb8" if suffix == ".gif" else "yuv420p"
    encode(path, moving(10, size), codec, pix_fmt=pix_fmt)
    aspect = Fraction(12, 11) if suffix == ".3gp" else None  # H.263 has no other
    everything = bare_decode(path, aspect)
    expected = everything[uniform_indices(len(everything), 4)]
    np.testing.assert_array_equal(read_video(path, 4), expected)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), "a PNG picture"),
        (cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes(), "a JPEG picture"),
        (b"\n <!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"#EXTM3U\nhttp://localhost/x.ts\n", "a list of other files"),
        (b"\0\0\0\1\x67\x42\0\x1e" * 20, "raw H.264"),
    ],
)
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "x.mp4").write_bytes(content)
    for source in (tmp_path / "x.mp4", content):
        with pytest.raises(UserError, match=rf"is {kind}.*\. Needed: a video\.$"):
            read_video(source, 4)


def test_one_frame_has_no_motion(tmp_path: Path) -> None:
    for suffix, codec, pix_fmt in ((".mp4", "mpeg4", "yuv420p"), (".gif", "gif", "rgb8")):
        encode(tmp_path / f"x{suffix}", moving(1), codec, pix_fmt=pix_fmt)
        with pytest.raises(UserError, match=r"has one frame\. Needed: at least 2\."):
            read_video(tmp_path / f"x{suffix}", 4)


def write_streams(path: Path, *streams: tuple[int, tuple[int, int], bool]) -> None:
    """A file of several video streams: the frames of each, their size, whether it is a cover."""
    with av.open(str(path), "w") as container:
        made = []
        for num_frames, size, is_cover in streams:
            stream = container.add_stream("mjpeg" if is_cover else "mpeg4", rate=25)
            stream.height, stream.width = size
            stream.pix_fmt = "yuvj420p" if is_cover else "yuv420p"
            if is_cover:
                stream.disposition = type(stream.disposition).attached_pic
            made.append((stream, num_frames, size))
        for stream, num_frames, size in made:
            for picture in moving(num_frames, size):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
            container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_cover_or_a_preview_is_not_the_video(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    write_streams(path, (1, (64, 64), True), (12, (48, 64), False))
    assert sample_video(path, 4).num_frames == 12
    write_streams(path, (1, (16, 16), False), (12, (48, 64), False))
    assert sample_video(path, 4).num_frames == 12
    write_streams(path, (1, (64, 64), True))
    with pytest.raises(UserError, match=r"has no video stream|has one frame"):
        sample_video(path, 4)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
@pytest.mark.parametrize("is_indexed", [False, True])
def test_a_segment_has_the_frames_whose_times_are_in_it(
    tmp_path: Path, suffix: str, is_indexed: bool
) -> None:
    path = tmp_path / f"x{suffix}"
    codec, options = ("libx264", {"bf": "2"}) if suffix != ".avi" else ("mpeg4", None)
    encode(path, moving(60), codec, codec_options=options)
    with av.open(str(path)) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])
    everything, index = bare_decode(path), index_video(path) if is_indexed else None
    for start, end in ((0, 0.4), (0.48, 1.2), (1, 1.08), (2, 2.36), (1.9, 99), (0, np.inf)):
        inside = np.flatnonzero((times - times[0] > start - 1e-9) & (times - times[0] < end - 1e-9))
        sampled = sample_video(path, 3, segment=Segment(start, end), index=index)
        assert sampled.num_frames == len(inside)
        expected = everything[inside[uniform_indices(len(inside), 3)]]
        np.testing.assert_array_equal(sampled.frames, expected)
    sampled = sample_video(path, 3, segment=Segment(10, 19, "frames"), index=index)
    assert sampled.num_frames == 10
    np.testing.assert_array_equal(sampled.frames, everything[10 + uniform_indices(10, 3)])


def test_frames_that_an_edit_list_hides_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "x.mp4"
    encode(path, moving(24), "libx264", codec_options={"bf": "2"})
    content = path.read_bytes()
    at = content.index(b"elst") + 12  # duration in the movie's units, and where it starts
    start = int.from_bytes(content[at + 4 : at + 8], "big") + 10 * 512
    path.write_bytes(content[: at + 4] + start.to_bytes(4, "big") + content[at + 8 :])
    everything = bare_decode(path)
    assert len(everything) == len(index_video(path).times) == 14
    np.testing.assert_array_equal(read_video(path, 14), everything)
    for segment in (Segment(0, 0.2), Segment(0, 4, "frames")):
        frames = sample_video(path, 5, segment=segment, index=index_video(path)).frames
        np.testing.assert_array_equal(frames, everything[:5])


def test_a_segment_of_times_that_come_twice_is_right(tmp_path: Path) -> None:
    encode(tmp_path / "once.mkv", moving(40), "mjpeg", pix_fmt="yuvj420p")
    path = tmp_path / "x.mkv"
    with av.open(str(tmp_path / "once.mkv")) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = 40 * (number // 2)
            packet.stream = stream
            target.mux(packet)
    segment = sample_video(path, 10, segment=Segment(13, 22, "frames"))
    np.testing.assert_array_equal(segment.frames, bare_decode(path)[13:23])


def test_a_segment_of_a_stream_without_key_frames_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.mkv"
    options = {"x264-params": "intra-refresh=1:keyint=20", "preset": "ultrafast"}
    encode(path, moving(300, (32, 32)), "libx264", codec_options=options)
    everything = bare_decode(path)
    for start in range(0, 290, 10):
        sampled = sample_video(path, 8, segment=Segment(start, start + 7, "frames"))
        np.testing.assert_array_equal(sampled.frames, everything[start : start + 8])


def test_a_segment_that_is_not_in_the_video_is_refused_with_the_length(videos: Path) -> None:
    path = videos / "v4.mp4"  # 11 frames at 12 a second
    for segment, found in (
        (Segment(5, 9), r"has no frames from 5 to 9 seconds \(of 0\.92 s, 11 frames\)"),
        (Segment(0, 0.01), "has one frame from 0 to 0.01 seconds"),
        (Segment(20, 30, "frames"), "has no frames from 20 to 30 frames"),
        (Segment(0.5, 0.2), "has no frames from 0.5 to 0.2 seconds"),
    ):
        with pytest.raises(UserError, match=f"{found}.*Needed: at least 2"):
            sample_video(path, 4, segment=segment)


def test_an_index_can_be_sent_to_another_process(videos: Path) -> None:
    index = pickle.loads(pickle.dumps(index_video(videos / "v4.mp4")))
    frames = sample_video(videos / "v4.mp4", 5, index=index).frames
    np.testing.assert_array_equal(frames, read_video(videos / "v4.mp4", 5))


def test_no_frame_stays_in_memory(videos: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        sample_video(videos / "v0.mp4", 2)
        kept = [thing for thing in gc.get_objects() if isinstance(thing, av.VideoFrame)]
    finally:
        gc.enable()
    assert kept == []


def test_a_stream_that_appears_on_the_way_is_no_error() -> None:
    class Container:
        def demux(self, *streams: object) -> Iterator[str]:
            yield "packet"
            raise IndexError("list index out of range")  # as PyAV does at the end

    assert list(demux(Container())) == ["packet"]
