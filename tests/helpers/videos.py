"""Videos for tests, and their decoding."""

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.data.preparation.decoding import VideoPart, decode_videos
from k400tiny_lib.data.preparation.decoding_worker import FrameSettings
from k400tiny_lib.data.sources.videos import list_videos
from k400tiny_lib.media.picture import Orientation, Squarer
from k400tiny_lib.media.video import Image

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


class Unseekable(io.RawIOBase):
    """A file as a live recorder has it: sizes and durations cannot be filled in at the end."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def write(self, data: Any) -> int:
        self.content += bytes(data)
        return len(data)


def encode(
    target: Path | Unseekable,
    pictures: Iterable[Image],
    codec: str = "mpeg4",
    *,
    container: str | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    pixel_aspect: Fraction | None = None,
    color: Mapping[str, int] | None = None,
    times: Sequence[int] | None = None,
    seconds_of_sound: float = 0,
) -> None:
    """A video of pictures at 25 frames a second.

    Args:
        target: the file.
        pictures: uint8 (H, W, 3), RGB, of one size.
        codec, container: FFmpeg's names; the container is that of the suffix if None.
        options, codec_options: of the container and the encoder.
        pix_fmt: of the stream.
        pixel_aspect: width over height of a pixel.
        color: colorspace, color_range of the stream, as FFmpeg numbers them.
        times: of each picture, in 25ths of a second.
        seconds_of_sound: noise of that length.
    """
    file = str(target) if isinstance(target, Path) else target
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream: Any = output.add_stream(codec, rate=25, options=codec_options or {})
        stream.pix_fmt, stream.codec_context.gop_size = pix_fmt, 12
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        for name, value in (color or {}).items():
            setattr(stream.codec_context, name, value)
        sound: Any = output.add_stream("aac", rate=8000) if seconds_of_sound else None
        if sound:
            sound.layout = "mono"
        for number, picture in enumerate(pictures):
            if not number:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if color:
                frame = frame.reformat(
                    format=pix_fmt,
                    dst_colorspace=color.get("colorspace"),
                    dst_color_range=color.get("color_range"),
                )
            frame.pts = times[number] if times else number
            frame.time_base = Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        for start in range(0, int(seconds_of_sound * 8000), 1024):
            noise = np.random.default_rng(start).normal(0, 0.1, (1, 1024)).astype(np.float32)
            part = av.AudioFrame.from_ndarray(noise, "fltp", "mono")
            part.sample_rate, part.pts = 8000, start
            output.mux(sound.encode(part))
        if sound:
            output.mux(sound.encode(None))


def moving(num_frames: int, size: tuple[int, int] = (96, 128), seed: int = 0) -> Iterator[Image]:
    """Frames of a soft picture that slides: (height, width) = size."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, (size[0] + 128, size[1] + 128, 3), dtype=np.uint8)
    soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 3), None, 0, 255, cv2.NORM_MINMAX)
    for number in range(num_frames):
        top, left = number % 128, 2 * number % 128
        yield np.ascontiguousarray(soft[top : top + size[0], left : left + size[1]])


def bare_decode(path: Path, pixel_aspect: Fraction | None = None) -> Image:
    """Every frame that PyAV decodes, as squares."""
    with av.open(str(path)) as container:
        square = Squarer(336, pixel_aspect, Orientation())
        return np.stack([square(frame) for frame in container.decode(video=0)])
