"""Temporal sampling without PyTorch: which frames of a segment a model sees."""

from fractions import Fraction
from math import ceil, floor
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]

_LONG = 1e9  # seconds, in place of infinity


class Segment(NamedTuple):
    """A part of a video.

    Attributes:
        start: seconds after the first frame of the video, or the number of a frame, from 0.
        end: seconds; frames from then on do not belong to it. Or its last frame, which does.
        unit: of both.
    """

    start: float
    end: float
    unit: Literal["seconds", "frames"] = "seconds"


def uniform_indices(num_frames: int, clip_len: int) -> Indices:
    """Spread frame indices evenly over a segment, first and last frame included.

    One view of the Kinetics evaluation protocol: the frames of pytorchvideo's
    uniform_temporal_subsample, exactly. A segment shorter than the clip repeats frames.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.

    Returns:
        int64 (clip_len,), non-decreasing, within [0, num_frames).

    Raises:
        ValueError: if either is below 1.
    """
    if num_frames < 1 or clip_len < 1:
        raise ValueError(f"num_frames {num_frames} and clip_len {clip_len} must be at least 1")
    if clip_len == 1:
        return np.zeros(1, np.int64)
    # pytorchvideo rounds down a float32 torch.linspace. That rounds its step to float32, counts the
    # steps from the nearer end, and rounds each sum once. Sums in float64 are exact before that.
    last = num_frames - 1
    step = float(np.float32(last) / np.float32(clip_len - 1))
    index = np.arange(clip_len)
    from_start, from_end = step * index, last - step * (clip_len - 1 - index)
    spread = np.where(index < clip_len // 2, from_start, from_end).astype(np.float32)
    return spread.clip(0, last).astype(np.int64)


def view_indices(num_frames: int, clip_len: int, num_views: int = 1) -> Indices:
    """Frame indices of several views of a segment, shifted against one another in time.

    Each view spans the whole segment. The views divide the stride of the frames evenly; the middle
    one of an odd number, and a single one, is `uniform_indices`.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.
        num_views: at least 1.

    Returns:
        int64 (num_views, clip_len), non-decreasing along the last axis, within [0, num_frames).

    Raises:
        ValueError: if one is below 1.
    """
    if num_views < 1:
        raise ValueError(f"num_views {num_views} must be at least 1")
    middle = uniform_indices(num_frames, clip_len)
    half = np.float32(0.5)
    # In strides, within (-1/2, 1/2).
    phases = (np.arange(num_views, dtype=np.float32) + half) / np.float32(num_views) - half
    shifts = (phases * np.float32(num_frames / clip_len)).round().astype(np.int64)
    return (middle + shifts[:, None]).clip(0, num_frames - 1)


def segment_range(segment: Segment, times: Indices, tick: Fraction) -> range:
    """The positions of a segment's frames.

    Args:
        segment: the part.
        times: int64 (N,), when each frame of the video is shown, in order.
        tick: seconds per unit of the times.

    Returns:
        Positions in `times`; empty where the segment is outside of the video.
    """
    if segment.unit == "frames":
        return range(max(0, ceil(segment.start)), min(len(times), floor(segment.end) + 1))
    # Exactly, so that 0.1 s includes a frame at 0.1 s: repr is the shortest decimal number.
    seconds = [min(max(float(t), -_LONG), _LONG) for t in (segment.start, segment.end)]
    ticks = [ceil(Fraction(repr(t)) / tick) for t in seconds]
    start, stop = np.searchsorted(times - times[0], ticks, side="left").tolist()
    return range(start, stop)
