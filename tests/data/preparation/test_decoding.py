"""Videos become frame folders: the right frames, whole or not at all, whoever decodes them."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import av
import cv2
import numpy as np
import pytest

from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import Decodings, decode_videos, plan
from k400tiny_lib.data.preparation.decoding_worker import Task, decode
from k400tiny_lib.data.sources.videos import list_videos
from k400tiny_lib.media.frames import frame_files
from tests.conftest import REPOSITORY
from tests.helpers.videos import SMALL, clips_of, decode_all, write_video, write_videos


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a directory, hidden ones too."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(paths)}


@pytest.mark.parametrize("name", ["v0.mp4", "v1.avi"])
def test_decoded_frames_have_the_size_asked_for(videos: Path, name: str) -> None:
    video = list_videos(str(videos))[name]
    _, (decoded,) = decode(Task(video, (("x", None),), SMALL))
    images = [cv2.imdecode(np.frombuffer(f, np.uint8), cv2.IMREAD_COLOR) for f in decoded.frames]
    assert [image.shape for image in images] == [(32, 32, 3)] * 4


def test_a_file_that_is_no_video_is_named_with_its_reason(videos: Path, tmp_path: Path) -> None:
    index = ContentIndex(tmp_path / "index.sqlite")
    assert decode_all(videos, tmp_path / "frames") == ["bad"]
    assert not (tmp_path / "frames" / "bad").exists()
    todo, known = plan(clips_of(videos), tmp_path / "frames", SMALL, index)
    assert todo == {}
    assert list(known.bad) == ["bad"]
    assert "cannot be decoded" in known.bad["bad"]


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
    with (
        patch.dict(os.environ),  # in which Dask leaves what it sets for its workers
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
    ):
        bad = decode_all(videos, tmp_path / "dask" / "frames", cluster.scheduler_address)
    assert bad == ["bad"]
    local, dask = tree(tmp_path / "local" / "frames"), tree(tmp_path / "dask" / "frames")
    assert len(local) == 6 * 5  # four frames and the digest of the video
    assert local == dask


def test_a_killed_decoding_goes_on_to_the_same_result(tmp_path: Path) -> None:
    for number in range(30):
        write_video(tmp_path / "in" / f"v{number}.avi", 40)
    assert decode_all(tmp_path / "in", tmp_path / "undisturbed" / "frames") == []
    target = tmp_path / "killed" / "frames"
    script = (
        "import sys; from pathlib import Path; from tests.helpers.videos import decode_all;"
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


def write_damaged(path: Path, num_frames: int, damaged: int) -> None:
    """A video of independent frames, some of which are overwritten with zeros."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        for number in range(num_frames):
            image = np.full((48, 64, 3), 10 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(path.read_bytes())
    for position, size in packets[2 : 2 + damaged]:
        content[position + 8 : position + size] = bytes(size - 8)  # not the next packet's header
    path.write_bytes(content)


def test_notes_of_damage_are_the_same_when_nothing_is_decoded_again(tmp_path: Path) -> None:
    write_damaged(tmp_path / "in" / "a.avi", 20, 1)
    write_video(tmp_path / "in" / "b.avi")
    first = decode_into(tmp_path, 0.1)
    assert first.bad == {}
    assert list(first.notes) == ["a"]
    assert "1 of 20 frames" in first.notes["a"]
    before = {path: path.stat().st_ino for path in (tmp_path / "frames").rglob("*.jpg")}
    assert decode_into(tmp_path, 0.1) == first
    assert {p: p.stat().st_ino for p in (tmp_path / "frames").rglob("*.jpg")} == before


def test_another_share_of_bad_frames_takes_effect(tmp_path: Path) -> None:
    write_damaged(tmp_path / "in" / "a.avi", 20, 3)
    write_video(tmp_path / "in" / "b.avi")
    assert list(decode_into(tmp_path, 0.1).bad) == ["a"]
    kept = tmp_path / "frames" / "b" / "frame00.jpg"
    before = kept.stat().st_ino
    assert list(decode_into(tmp_path, 0.2).notes) == ["a"]
    assert list(decode_into(tmp_path, 0.1).bad) == ["a"]
    assert list(decode_into(tmp_path, 0.1).bad) == ["a"]  # from the index
    assert not (tmp_path / "frames" / "a").exists()
    assert kept.stat().st_ino == before


def decode_into(tmp_path: Path, max_bad_frames: float) -> Decodings:
    settings = replace(SMALL, max_bad_frames=max_bad_frames)
    index = ContentIndex(tmp_path / "index.sqlite")
    clips, target = clips_of(tmp_path / "in"), tmp_path / "frames"
    return decode_videos(clips, target, settings, index, scheduler="none", workers=1)


def test_a_bad_video_takes_only_its_own_frames_with_it(tmp_path: Path) -> None:
    write_video(tmp_path / "in" / "a.avi")
    decode_into(tmp_path, 0.1)
    inner = tmp_path / "frames" / "a" / "b"
    inner.mkdir()
    (inner / "frame00.jpg").write_bytes(b"of another clip")
    (tmp_path / "in" / "a.avi").write_text("no video")
    assert list(decode_into(tmp_path, 0.1).bad) == ["a"]
    assert [path.name for path in (tmp_path / "frames" / "a").iterdir()] == ["b"]
    assert (inner / "frame00.jpg").exists()
