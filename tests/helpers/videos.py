"""Videos for tests, and their decoding."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import VideoPart, decode_videos
from k400tiny_lib.data.preparation.decoding_worker import FrameSettings
from k400tiny_lib.data.sources.videos import list_videos

SMALL = FrameSettings(num_frames=4, size=32)


def write_video(
    path: Path,
    num_frames: int = 12,
    size: tuple[int, int] = (48, 64),
    options: dict[str, str] | None = None,
) -> None:
    """A video, height x width = size, whose frame number k is gray at 20 * k modulo 256."""
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


def write_videos(root: Path) -> Path:
    """Six videos of several lengths, sizes and containers, and one that is none."""
    for number, suffix in enumerate((".mp4", ".avi", ".mkv", ".mov", ".mp4", ".avi")):
        size = (48, 64) if number % 2 else (80, 64)
        write_video(root / f"v{number}{suffix}", 3 + 2 * number, size)
    (root / "bad.mp4").write_text("no video")
    return root


def clips_of(folder: Path) -> dict[str, VideoPart]:
    """Its videos by name without suffix."""
    videos = list_videos(str(folder)).items()
    return {name.partition(".")[0]: VideoPart(video) for name, video in videos}


def decode_all(folder: Path, target: Path, scheduler: str = "none") -> list[str]:
    """Decode the videos of a folder into 4 frames of 32 px; returns the bad ones."""
    index = ContentIndex(target.parent / "index.sqlite")
    decoded = decode_videos(clips_of(folder), target, SMALL, index, scheduler=scheduler, workers=2)
    return sorted(decoded.bad)
