"""Temporal sampling: which frames of a segment a model sees, as tensors."""

import torch
from torch import Tensor

from k400tiny_lib.media.sampling import uniform_positions, view_positions


def uniform_indices(num_frames: int, clip_len: int) -> Tensor:
    """Spread frame indices evenly over a segment, first and last frame included.

    One view of the Kinetics evaluation protocol (pytorchvideo's uniform_temporal_subsample). A
    segment shorter than the clip repeats frames.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.

    Returns:
        int64 (clip_len,), non-decreasing, within [0, num_frames).

    Raises:
        ValueError: if either is below 1.
    """
    return torch.tensor(uniform_positions(num_frames, clip_len))


def view_indices(num_frames: int, clip_len: int, num_views: int) -> Tensor:
    """Frame indices of several views of a segment, shifted against one another in time.

    Each view spans the whole segment. The views divide the stride of the frames evenly; the middle
    one of an odd number, and a single one, is `uniform_indices`.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.
        num_views: views, at least 1.

    Returns:
        int64 (num_views, clip_len), non-decreasing along the last axis, within [0, num_frames).

    Raises:
        ValueError: if one is below 1.
    """
    positions = view_positions(num_frames, clip_len, num_views)
    return torch.tensor(positions).view(num_views, clip_len)


def jittered_indices(num_frames: int, clip_len: int, generator: torch.Generator) -> Tensor:
    """Cut a segment into equal parts and take a random frame of each.

    The training-time counterpart of `uniform_indices`, as Temporal Segment Networks samples
    (Wang et al. 2016, arXiv:1608.00859).

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.
        generator: to draw from.

    Returns:
        int64 (clip_len,), non-decreasing, within [0, num_frames).

    Raises:
        ValueError: if either is below 1.
    """
    if num_frames < 1 or clip_len < 1:
        raise ValueError(f"num_frames {num_frames} and clip_len {clip_len} must be at least 1")
    part = num_frames / clip_len
    offsets = torch.rand(clip_len, generator=generator, dtype=torch.float64)
    starts = torch.arange(clip_len, dtype=torch.float64)
    return ((starts + offsets) * part).long().clamp(max=num_frames - 1)
