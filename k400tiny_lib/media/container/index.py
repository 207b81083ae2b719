"""What a video file holds, found without decoding: its stream, packets and their times."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError
from k400tiny_lib.media.container.expected_size import Facts
from k400tiny_lib.media.container.opening import (
    Limits,
    choose_stream,
    demux,
    file_of,
    moving_streams,
    name_of,
    opened,
    prepare_stream,
)
from k400tiny_lib.media.container.truncation import find_truncation, has_hole

Times = npt.NDArray[np.int64]

_MOST_LOST = 1 << 18  # frames; a gap between the times of two packets may be any number
# Codecs whose packets end in a mark or a one; those of others may be filled up with zeros.
_NEVER_IN_ZEROS = (
    *("h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "mpeg4", "h263", "flv", "theora"),
    *("wmv1", "wmv2", "wmv3", "vc1", "msmpeg4", "msmpeg4v1", "msmpeg4v2"),
)


@dataclass(frozen=True)
class VideoIndex:
    """The packets of a video; can be pickled.

    Attributes:
        stream: number of the video stream.
        tick: seconds per unit of the times below.
        times: int64 (N,), when each frame is shown, in order; those that an edit list hides are
            left out.
        keys: int64 (K,), times of the key frames, in order.
        is_exact: whether `times` identify the frames: all known, no two the same.
        lost: int64 (M,), when frames would be shown of which the file has only zeros.
    """

    stream: int
    tick: Fraction
    times: Times
    keys: Times
    is_exact: bool
    lost: Times = field(default_factory=lambda: np.array([], np.int64))

    @property
    def duration(self) -> float:
        """Seconds from the first frame shown to the end of the last one."""
        if len(self.times) < 2:
            return 0.0
        return float((int(self.times[-1] - self.times[0]) + self.step) * self.tick)

    def with_times(self, times: Sequence[int | None]) -> "VideoIndex":
        """The index with the times of the frames that came out of the decoder, where known."""
        start = int(self.times[0]) if len(self.times) else 0
        known = [start + n * self.step if t is None else t for n, t in enumerate(times)]
        return replace(self, times=np.array(known, np.int64))

    @property
    def step(self) -> int:
        """The usual time from one frame to the next, at least 1."""
        steps = np.diff(self.times)
        return int(np.median(steps[steps > 0])) if steps.any() else 1


class _Row(NamedTuple):
    position: int | None
    pts: int | None
    dts: int | None
    is_key: bool
    is_hidden: bool  # by an edit list

    @property
    def time(self) -> int | None:
        """When the frame is shown, or the packet is stored."""
        return self.dts if self.pts is None else self.pts


def index_video(video: Path | bytes, limits: Limits | None = None) -> VideoIndex:
    """Read the packets of a video without decoding it.

    Args:
        video: the file, or its content.
        limits: the largest video to accept; None for any.

    Raises:
        UserError: if the file is empty or truncated, holds no video or exceeds a limit.
    """
    with opened(video, limits) as container:
        index, _ = read_packets(video, container, limits)
    return index


def read_packets(
    video: Path | bytes, container: Any, limits: Limits | None, most_kept: int = 0
) -> tuple[VideoIndex, list[Any]]:
    """The index of an opened video, and its packets if they take at most `most_kept` bytes.

    Raises:
        UserError: as for `index_video`.
    """
    stream = choose_stream(video, container)
    prepare_stream(video, stream, limits)
    rows: dict[int, list[_Row]] = {s.index: [] for s in container.streams.video}
    packets, num_kept, ending = [], 0, _Ending(container)
    check = limits.check if limits and limits.check else lambda pixels: None
    # All streams: a file whose sound is longer than its pictures is whole.
    for packet in demux(container):
        check(0)
        if packet.size:
            ending.add(packet)
        number = packet.stream.index  # the last, empty one has no stream_index
        if number in rows and packet.size:
            row = _Row(packet.pos, packet.pts, packet.dts, packet.is_keyframe, packet.is_discard)
            rows[number].append(row)
            if limits and len(rows[number]) > limits.frames:
                raise UserError(
                    f"{name_of(video)} has more than {limits.frames} frames. Needed: a shorter one."
                )
        if number == stream.index:
            num_kept += packet.size
            if num_kept <= most_kept:
                packets.append(packet)
            else:
                packets.clear()
    with file_of(video, limits) as file:
        missing = find_truncation(file, container.format.name, ending.facts())
    if missing:
        raise UserError(f"{name_of(video)} is truncated: {missing}.")
    if len(rows[stream.index]) < 2:  # a picture that is not marked as one
        others = [s for s in moving_streams(container) if len(rows.get(s.index, ())) > 1]
        if others:
            stream, packets = max(others, key=lambda s: len(rows[s.index])), []
            prepare_stream(video, stream, limits)
    index = _index(stream, rows[stream.index])
    if "mov" not in container.format.name:  # its index names all packets
        stated = stream.frames if container.format.name == "avi" else 0
        with file_of(video, limits) as file:
            index = replace(index, lost=_lost_times(file, index, rows[stream.index], stated))
    return index, packets


def _lost_times(file: BinaryIO, index: VideoIndex, rows: Sequence[_Row], stated: int) -> Times:
    """When the frames would be shown in place of which the file has zeros.

    A gap between two frames may be right, and a number of frames in a header (`stated`) wrong.
    """
    if len(index.times) < 2:
        return index.lost
    step = index.step  # takes as long as all the rest
    positions = sorted((row.time or 0, row.position or 0) for row in rows)
    times: list[int] = []
    for (time, position), (later, following) in pairwise(positions):
        count = min(round((later - time) / step) - 1, _MOST_LOST - len(times))
        first, last = sorted((position, following))
        if later - time > 1.5 * step and has_hole(file, first, last):
            times += [time + step * n for n in range(1, count + 1)]
    # AVI has no times: the frames after a hole move up.
    span = round((index.times[-1] - index.times[0]) / step) + 1
    ends = [position for _, position in positions]
    if span < stated < min(2 * span, span + _MOST_LOST) and has_hole(file, min(ends), max(ends)):
        spread = np.linspace(index.times[0], index.times[-1], stated - span)
        times += spread.astype(int).tolist()
    return np.array(times, np.int64)


def _index(stream: Any, rows: Sequence[_Row]) -> VideoIndex:
    shown = [row for row in rows if not row.is_hidden]
    pts = [row.pts for row in shown if row.pts is not None]
    # Without them, frames are shown as regularly as they are stored.
    times = pts if len(pts) == len(shown) else [row.dts for row in shown if row.dts is not None]
    keys = {row.pts for row in rows if row.is_key and row.pts is not None}
    return VideoIndex(
        stream.index,
        Fraction(stream.time_base),
        np.array(sorted(times), np.int64),
        np.array(sorted(keys), np.int64),
        is_exact=len(pts) == len(shown) == len(set(pts)),
    )


class _Ending:
    """Collects how the packets of a file end."""

    def __init__(self, container: Any) -> None:
        self._container = container
        self._ends: dict[int, int] = {}  # by stream, in its time unit
        self._last: Any = None
        self._video_end = 0
        known = [s for s in container.streams if s.codec_context is not None]
        self._compressed = {s.index for s in known if s.codec.lossy}
        self._never_in_zeros = {s.index for s in known if s.codec_context.name in _NEVER_IN_ZEROS}

    def add(self, packet: Any) -> None:
        """Add a packet of any stream."""
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            end = stamp + (packet.duration or 0)
            self._ends[packet.stream_index] = max(end, self._ends.get(packet.stream_index, end))
        position = packet.pos or 0
        if packet.stream_index in self._never_in_zeros:
            self._video_end = max(self._video_end, position + packet.size)
        if self._last is None or position >= (self._last.pos or 0):
            self._last = packet

    def facts(self) -> Facts:
        """All that was seen."""
        container, last = self._container, self._last
        streams = container.streams
        ends = [end * streams[index].time_base for index, end in self._ends.items()]
        start = Fraction(container.start_time or 0, av.time_base)
        position = (last.pos or 0) if last else 0
        packets_end = position + (last.size if last else 0)
        index = [e.pos + e.size for s in streams for e in s.index_entries]
        data = bytes(last) if last is not None and last.stream_index in self._compressed else b""
        return Facts(
            index_end=max(index, default=0),
            last_start=position,
            packets_end=packets_end,
            # A gap in the numbers of MPEG-TS makes a packet corrupt, too.
            is_cut=bool(last and last.is_corrupt and container.format.name != "mpegts"),
            video_end=self._video_end,
            is_empty=last is not None and len(data) > 4 and not any(data),
            seconds=float(max(ends, default=Fraction(0)) - start),
            stated=(container.duration or 0) / av.time_base,
        )
