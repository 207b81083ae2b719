"""Frames of video files: the right ones, sought or decoded in order, or one line of refusal."""

from pathlib import Path

import av
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.picture import Orientation, Squarer
from k400tiny_lib.media.sampling import uniform_indices
from k400tiny_lib.media.video import Image, sample_video
from tests.helpers.videos import write_video, write_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def read_video(video: Path | bytes, num_frames: int) -> Image:
    return sample_video(video, num_frames).frames


def bare_decode(path: Path) -> Image:
    """Every frame that PyAV decodes, as squares."""
    with av.open(str(path)) as container:
        square = Squarer(336, None, Orientation())
        return np.stack([square(frame) for frame in container.decode(video=0)])


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
