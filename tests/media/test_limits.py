"""Limits on a video hold for what FFmpeg does before it decodes, and while it does."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.sample_tables import stated_samples
from k400tiny_lib.media.video import Limits, sample_video
from tests.conftest import REPOSITORY
from tests.helpers import hostile_videos as hostile
from tests.helpers.videos import encode, moving

FRAMES, PIXELS = 36_000, 3840 * 2160
# Peak memory in kB of a process that decodes a file, and what became of it.
MEASURE = """
import resource, sys
from pathlib import Path
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.video import Limits, sample_video
content = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    sample_video(content, 16, limits=Limits(36_000, 3840 * 2160, lambda pixels: None))
except UserError as error:
    print(error)
else:
    print("decoded")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("make", "outcome"),
    [
        (lambda: hostile.thin(16, 16000), "decoded"),
        (lambda: hostile.thin(2, 16000), "decoded"),
        (lambda: hostile.thin(16000, 64), "decoded"),
        (lambda: hostile.many_samples(20_000_000), "2e+07 samples"),
        (lambda: hostile.many_samples(20_000_000, fragmented=True), "2e+07 samples"),
        (lambda: hostile.many_streams(60), "decoded"),
        (lambda: hostile.many_streams(100), "too many streams"),
        (lambda: hostile.many_boxes(300_000), "samples"),
    ],
    ids=["thin", "thinner", "tall", "samples", "fragment", "streams", "more", "boxes"],
)
def test_small_files_that_ask_for_much_memory_do_not_get_it(
    make: Callable[[], bytes], outcome: str, tmp_path: Path
) -> None:
    (tmp_path / "video").write_bytes(make())
    # A new process starts with the peak of this one, unless another stands between.
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" "$@"', sys.executable, "-c", MEASURE, str(tmp_path / "video")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    told, kilobytes = done.stdout.splitlines()
    assert outcome in told
    assert int(kilobytes) < 450_000  # without limits: 1 to 3 GB


def test_the_check_learns_of_every_pixel_that_is_decoded(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", moving(30, (96, 128)))
    counted: list[int] = []
    sample_video(tmp_path / "a.mp4", 4, limits=Limits(FRAMES, PIXELS, counted.append))
    with av.open(str(tmp_path / "a.mp4")) as container:
        expected = sum(frame.width * frame.height for frame in container.decode(video=0))
    assert sum(counted) == expected == 30 * 96 * 128
    assert counted.count(0) >= 30  # while packets are read, too


def test_a_large_frame_is_decoded_alike_with_and_without_limits(tmp_path: Path) -> None:
    # With them, FFmpeg does not decode one when it opens the file.
    encode(tmp_path / "a.ts", moving(6, (1440, 2560)), "libx264", codec_options={"bf": "2"})
    free, limited = (
        sample_video(tmp_path / "a.ts", 4, limits=limits) for limits in (None, Limits(100, PIXELS))
    )
    np.testing.assert_array_equal(free.frames, limited.frames)
    assert free[1:] == limited[1:]


@pytest.mark.parametrize("call", [1, 5, 20, 60])
def test_the_check_ends_the_work_wherever_it_is(call: int) -> None:
    content = hostile.ordinary(60)
    count = 0

    def check(pixels: int) -> None:
        nonlocal count
        count += 1
        if count >= call:
            raise UserError("enough")

    with pytest.raises(UserError, match=r"^enough$"):
        sample_video(content, 4, limits=Limits(FRAMES, PIXELS, check))
    assert count <= call + 3


def test_a_check_that_finds_nothing_changes_no_pixel() -> None:
    content = hostile.ordinary(60)
    free = sample_video(content, 8)
    checked = sample_video(content, 8, limits=Limits(FRAMES, PIXELS, lambda pixels: None))
    np.testing.assert_array_equal(free.frames, checked.frames)


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_real_files_state_as_many_samples_as_they_have(container: str) -> None:
    content = io.BytesIO()
    with av.open(content, "w", format=container) as output:
        video = output.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        sound = output.add_stream("pcm_s16le" if container == "mov" else "aac", rate=48_000)
        for picture in moving(25, (48, 64)):
            output.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        output.mux(video.encode(None))
        for second in range(30):
            silence = np.zeros((1, 48_000), np.int16)
            part = av.AudioFrame.from_ndarray(silence, "s16", "mono")
            part.sample_rate, part.pts = 48_000, second * 48_000
            output.mux(sound.encode(part))
        output.mux(sound.encode(None))
    # Uncompressed sound has a sample per tick, of which FFmpeg makes no table.
    assert stated_samples(content) < 3000
    limits = Limits(100, PIXELS)
    assert sample_video(content.getvalue(), 4, limits=limits).num_frames == 25


def test_other_containers_and_junk_state_none() -> None:
    rng = np.random.default_rng(0)
    for content in (rng.bytes(100_000), bytes(100_000), b"", hostile.thin(64, 48)):
        assert stated_samples(io.BytesIO(content)) == 0
    assert stated_samples(io.BytesIO(hostile.ordinary(60))) < 200


def test_the_packets_of_a_long_video_are_not_gone_through_for_each_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, median = [], np.median
    monkeypatch.setattr(np, "median", lambda *values: calls.append(1) or median(*values))
    sample_video(hostile.many_pixels(400, (48, 64)), 4, limits=Limits(FRAMES, PIXELS))
    assert 0 < len(calls) < 10
