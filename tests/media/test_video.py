"""Videos become frame folders: the right frames, whole or not at all, whoever decodes them."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from k400tiny_lib.data.loading.temporal_sampling import uniform_indices
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import FrameSettings, Task, decode_videos, plan
from k400tiny_lib.data.preparation.executors import map_unordered, open_executor
from k400tiny_lib.data.preparation.video_frames import decode
from k400tiny_lib.data.sources.video_files import VideoFile, list_videos
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.frames import frame_files
from k400tiny_lib.media.sampling import uniform_positions
from k400tiny_lib.media.video import list_packets, read_video, sample_by_seeking
from tests.conftest import REPOSITORY

SMALL = FrameSettings(num_frames=4, size=32)


def write_video(
    path: Path,
    num_frames: int = 12,
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
) -> None:
    """A video, height x width = size, whose frame number k is grey at 20 * k modulo 256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=Fraction(12))
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            image = np.full((*size, 3), 20 * number % 256, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six videos of several lengths, sizes and containers, and one that is none."""
    root = tmp_path_factory.mktemp("videos")
    for number, suffix in enumerate((".mp4", ".avi", ".mkv", ".mov", ".mp4", ".avi")):
        size = (48, 64) if number % 2 else (80, 64)
        write_video(root / f"v{number}{suffix}", 3 + 2 * number, size)
    (root / "bad.mp4").write_text("no video")
    return root


def named(folder: Path) -> dict[str, VideoFile]:
    return {name.partition(".")[0]: video for name, video in list_videos(str(folder)).items()}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


def decode_all(folder: Path, target: Path, scheduler: str = "none") -> list[str]:
    bad = decode_videos(
        named(folder),
        target,
        ContentIndex(target.parent / "index.sqlite"),
        scheduler=scheduler,
        workers=2,
        settings=SMALL,
    )
    return [clip.video for clip in bad]


def test_frames_are_the_ones_that_uniform_indices_names(videos: Path) -> None:
    frames = read_video(videos / "v4.mp4", 5)
    assert frames.shape == (5, 80, 64, 3)
    grey = torch.from_numpy(frames).float().mean((1, 2, 3))
    # MPEG-4 moves a grey by a few of 255; less than half the step of 20 tells neighbours apart.
    torch.testing.assert_close(grey, 20.0 * uniform_indices(11, 5).float(), atol=9, rtol=0)


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
            indices = uniform_positions(len(packets), clip_len)
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


@pytest.mark.parametrize("name", ["v0.mp4", "v1.avi"])
def test_decoded_frames_have_the_size_asked_for(videos: Path, name: str) -> None:
    video = list_videos(str(videos))[name]
    decoded = decode(Task("x", video.uri, video.stamp, SMALL))
    images = [cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_COLOR) for f in decoded.frames]
    assert [image.shape for image in images] == [(32, 32, 3)] * 4


def test_a_file_that_is_no_video_is_named_with_its_reason(videos: Path, tmp_path: Path) -> None:
    index = ContentIndex(tmp_path / "index.sqlite")
    assert decode_all(videos, tmp_path / "frames") == ["bad"]
    assert not (tmp_path / "frames" / "bad").exists()
    tasks, bad = plan(named(videos), tmp_path / "frames", SMALL, index)
    assert tasks == []
    assert [(clip.video, "cannot be decoded" in clip.reason) for clip in bad] == [("bad", True)]


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


def test_finished_videos_are_kept_and_changed_ones_decoded_again(tmp_path: Path) -> None:
    for name in "ab":
        write_video(tmp_path / "in" / f"{name}.mp4")
    frames = tmp_path / "frames"
    decode_all(tmp_path / "in", frames)
    before = {path: path.stat().st_ino for path in frames.rglob("*.jpg")}
    # A new time alone means nothing, even where the index is lost.
    os.utime(tmp_path / "in" / "a.mp4", (0, 0))
    (tmp_path / "index.sqlite").unlink()
    decode_all(tmp_path / "in", frames)
    assert {path: path.stat().st_ino for path in frames.rglob("*.jpg")} == before
    write_video(tmp_path / "in" / "b.mp4", num_frames=9)
    decode_all(tmp_path / "in", frames)
    after = {path: path.stat().st_ino for path in frames.rglob("*.jpg")}
    assert {path.parent.name for path in before if before[path] != after[path]} == {"b"}


def test_local_processes_and_a_dask_cluster_write_the_same_bytes(
    videos: Path, tmp_path: Path
) -> None:
    distributed = pytest.importorskip("distributed")
    assert decode_all(videos, tmp_path / "local" / "frames") == ["bad"]
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
    ) as cluster:
        bad = decode_all(videos, tmp_path / "dask" / "frames", cluster.scheduler_address)
    assert bad == ["bad"]
    local, dask = tree(tmp_path / "local" / "frames"), tree(tmp_path / "dask" / "frames")
    assert len(local) == 6 * 5  # four frames and the digest of the video
    assert local == dask


def test_an_unreachable_scheduler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("k400tiny_lib.data.preparation.executors._CONNECT_SECONDS", 1)
    with (
        pytest.raises(UserError, match=r"^dask_scheduler: no scheduler answers at tcp://127") as e,
        open_executor("tcp://127.0.0.1:9", "auto"),
    ):
        pass
    assert "\n" not in str(e.value)


def _square(number: int) -> int:
    return number * number


def test_map_unordered_takes_few_tasks_at_a_time_and_loses_none() -> None:
    taken: list[int] = []

    def tasks() -> list[int]:
        for number in range(50):
            taken.append(number)
            yield number

    done = []
    with open_executor("none", 1) as (executor, count):
        for number, square in map_unordered(executor, count, _square, tasks()):
            assert square == number * number
            done.append(number)
            assert len(taken) - len(done) <= 4
    assert sorted(done) == list(range(50))


def test_a_killed_decoding_goes_on_to_the_same_result(tmp_path: Path) -> None:
    for number in range(30):
        write_video(tmp_path / "in" / f"v{number}.avi", 40)
    assert decode_all(tmp_path / "in", tmp_path / "undisturbed" / "frames") == []
    target = tmp_path / "killed" / "frames"
    script = (
        "import sys; from pathlib import Path; from tests.media.test_video import decode_all;"
        "decode_all(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "in"), str(target)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    while len(list(target.glob("v*"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = list(target.glob("v*"))
    assert 5 <= len(done) < 30
    assert all(len(frame_files(folder)) == 4 for folder in done)
    assert decode_all(tmp_path / "in", target) == []
    assert tree(target) == tree(tmp_path / "undisturbed" / "frames")
