"""Small files that would cost a server much memory or time."""

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np

from tests.helpers.videos import moving

_TICK = Fraction(1, 25)


def encoded(
    size: tuple[int, int],
    num_frames: int,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
) -> tuple[list[bytes], bytes]:
    """Packets of gray frames, height x width = size, and the decoder's extra data."""
    context: Any = av.CodecContext.create(codec, "w")
    context.height, context.width = size
    context.pix_fmt, context.time_base, context.framerate = pix_fmt, _TICK, Fraction(25)
    context.options, context.thread_count = options or {}, 1
    packets = []
    for number in range(num_frames):
        frame = av.VideoFrame(size[1], size[0], pix_fmt)
        for plane in frame.planes:
            plane.update(bytes([100 + number % 2]) * plane.buffer_size)
        frame.pts, frame.time_base = number, _TICK
        packets += [bytes(packet) for packet in context.encode(frame)]
    packets += [bytes(packet) for packet in context.encode(None)]
    return packets, context.extradata or b""


def repeated(
    packets: Sequence[bytes],
    num_frames: int,
    size: tuple[int, int],
    codec: str = "libx264",
    container: str = "matroska",
    extra_data: bytes = b"",
    num_streams: int = 1,
) -> bytes:
    """A file of the first packet, a key frame, and then of the others over and over."""
    content = io.BytesIO()
    with av.open(content, "w", format=container) as output:
        streams: list[Any] = [output.add_stream(codec, rate=25) for _ in range(num_streams)]
        for stream in streams:
            stream.height, stream.width = size
            stream.pix_fmt = "yuv420p"
            if extra_data:
                stream.codec_context.extradata = extra_data
        for number in range(num_frames):
            following = packets[1:] or packets
            data = packets[0] if not number else following[(number - 1) % len(following)]
            for stream in streams:
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                packet.time_base, packet.stream = _TICK, stream
                packet.is_keyframe = not number or len(packets) == 1
                output.mux(packet)
    return content.getvalue()


def thin(height: int, width: int) -> bytes:
    """16 frames that are far longer than high, or the reverse."""
    packets, extra = encoded((height, width), 16, options={"g": "1"})
    return repeated(packets, 16, (height, width), extra_data=extra)


def many_pixels(num_frames: int, size: tuple[int, int] = (2160, 3840)) -> bytes:
    """Frames of 4K that change nothing, of some bytes each."""
    options = {"deadline": "realtime", "cpu-used": "8", "g": "1000000"}
    packets, _ = encoded(size, 4, "libvpx", options=options)
    return repeated([packets[0], packets[-1]], num_frames, size, "libvpx")


def many_streams(num_streams: int) -> bytes:
    """4K in each of many streams, of which FFmpeg decodes a frame to know them."""
    packets, extra = encoded((2160, 3840), 2, options={"g": "1"})
    return repeated(packets, 2, (2160, 3840), extra_data=extra, num_streams=num_streams)


def ordinary(num_frames: int = 50, size: tuple[int, int] = (240, 320)) -> bytes:
    """An MP4 file as it should be."""
    return _mp4(num_frames, size, {})


def many_samples(count: int, fragmented: bool = False) -> bytes:
    """An MP4 file whose table says that it has many samples of one size."""
    flags = "frag_keyframe+empty_moov+default_base_moof" if fragmented else ""
    content = bytearray(_mp4(8, (96, 128), {"movflags": flags} if flags else {}))
    number = struct.pack(">I", count)
    if fragmented:
        start = content.index(b"trun")
        content[start + 4 : start + 12] = struct.pack(">I", 1) + number
        return bytes(content)
    start = content.index(b"stsz")
    content[start + 8 : start + 16] = struct.pack(">I", 1) + number
    for name, offset in ((b"stsc", 16), (b"stts", 12)):
        start = content.index(name) + offset
        content[start : start + 4] = number
    return bytes(content)


def many_boxes(count: int) -> bytes:
    """An MP4 file with many empty boxes after its media."""
    return _mp4(8, (96, 128), {}) + struct.pack(">I4s", 8, b"free") * count


def _mp4(num_frames: int, size: tuple[int, int], options: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with av.open(content, "w", format="mp4", options=options) as output:
        stream: Any = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(moving(num_frames, size)):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = number, _TICK
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return content.getvalue()
