"""Frames of video files: the right ones, sought or decoded in order, or one line of refusal."""

from pathlib import Path

import av
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.media.video import list_packets, read_video, sample_by_seeking
from tests.helpers.videos import write_video, write_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def test_frames_are_the_ones_that_uniform_indices_names(videos: Path) -> None:
    frames = read_video(videos / "v4.mp4", 5)
    assert frames.shape == (5, 80, 64, 3)
    gray = frames.mean((1, 2, 3))
    # MPEG-4 moves a gray by a few of 255; less than half the step of 20 tells neighbors apart.
    np.testing.assert_allclose(gray, 20 * uniform_indices(11, 5), atol=9, rtol=0)


def test_frames_agree_with_decoding_everything(videos: Path) -> None:
    with av.open(str(videos / "v5.avi")) as container:
        everything = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    indices = uniform_indices(len(everything), 7)
    expected = np.stack([everything[i] for i in indices])
    np.testing.assert_array_equal(read_video(videos / "v5.avi", 7), expected)


@pytest.mark.parametrize("name", ["v0.mp4", "v1.avi", "v2.mkv", "v3.mov"])
def test_frames_that_are_sought_are_those_of_decoding_everything(videos: Path, name: str) -> None:
    path = videos / name
    for source in (path, path.read_bytes()):
        packets = list_packets(source)
        for clip_len in (1, 3, 7):
            indices = uniform_indices(len(packets), clip_len).tolist()
            frames = sample_by_seeking(source, indices, packets, lambda image: image)
            np.testing.assert_array_equal(frames, read_video(path, clip_len))


def test_a_long_video_gives_the_frames_of_decoding_everything(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    write_video(path, num_frames=3100, size=(16, 16))
    indices = uniform_indices(3100, 5).tolist()
    with av.open(str(path)) as container:
        expected = [
            frame.to_ndarray(format="rgb24")
            for number, frame in enumerate(container.decode(video=0))
            if number in indices
        ]
    np.testing.assert_array_equal(read_video(path, 5), expected)


def test_a_video_shorter_than_the_clip_repeats_frames(videos: Path) -> None:
    assert len(read_video(videos / "v0.mp4", 40)) == 40


def test_a_list_of_other_files_is_no_video(videos: Path) -> None:
    playlist = videos.parent / "list.mp4"
    playlist.write_text(f"ffconcat version 1.0\nfile {videos.name}/v0.mp4\n")
    with av.open(str(playlist)) as container:  # FFmpeg opens what it names
        assert len(list(container.decode(video=0))) == 3
    for source in (playlist, playlist.read_bytes()):
        with pytest.raises(UserError, match="cannot be decoded"):
            read_video(source, 4)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".avi"])
def test_half_a_video_is_refused_wherever_its_header_is(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    # With the header first, as for streaming, half a file still decodes to half the video.
    options = {} if suffix == ".avi" else {"movflags": "faststart"}
    write_video(path, num_frames=60, options=options)
    assert len(read_video(path, 4)) == 4
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"is truncated|cannot be decoded"):
        read_video(path, 4)
