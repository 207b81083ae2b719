"""Frames of a long video, without decoding all that come before them."""

from bisect import bisect_right
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
from av.video.frame import PictureType

from k400tiny_lib.media.container.index import VideoIndex
from k400tiny_lib.media.container.opening import (
    Limits,
    decode_packet,
    demux,
    opened,
    prepare_stream,
)
from k400tiny_lib.media.picture import Image, Squarer, orientation


def seek_frames(
    video: Path | bytes,
    index: VideoIndex,
    wanted: Collection[int],
    side: int,
    limits: Limits | None,
) -> dict[int, Image]:
    """Decode each frame from the key frame before it.

    Args:
        video: the file, or its content.
        index: of it.
        wanted: numbers of frames.
        side: of the squares, in pixels.
        limits: the largest video to accept; None for any.

    Returns:
        Frame number -> uint8 (side, side, 3), RGB; nothing unless all are there for certain.

    Raises:
        UserError: if the frames are larger than the limit.
    """
    keys = index.keys.tolist()
    if len(index.lost) or not index.is_exact or not keys or keys[0] > index.times[0]:
        return {}
    images: dict[int, Image] = {}
    with opened(video, limits) as container, suppress(av.FFmpegError, StopIteration):
        stream = container.streams[index.stream]
        prepare_stream(video, stream, limits)
        frames, last_key = _frames(container, stream, limits), None
        frame = next(frames)
        square = Squarer(side, stream.sample_aspect_ratio, orientation(frame))
        for number in sorted(set(wanted)):
            time = int(index.times[number])
            key = keys[bisect_right(keys, time) - 1]
            if key != last_key:
                container.seek(key, stream=stream)
                frames, last_key = _frames(container, stream, limits), key
                frame = next(f for f in frames if f.pts is None or f.pts >= key)
                # The picture of some streams becomes whole step by step, without such a frame.
                if frame.pts != key or frame.pict_type > PictureType.I:
                    break
            if frame.pts != time:
                frame = next(f for f in frames if f.pts is None or f.pts >= time)
            if frame.pts != time or frame.is_corrupt:
                break
            images[number] = square(frame)
    return images if images.keys() >= set(wanted) else {}


def _frames(container: Any, stream: Any, limits: Limits | None) -> Iterator[Any]:
    for packet in demux(container, stream):
        yield from decode_packet(packet, limits)
