"""Temporal sampling without PyTorch: which frames of a clip a model sees."""

import numpy as np


def uniform_positions(num_frames: int, clip_len: int) -> list[int]:
    """Spread frame positions evenly over a segment, first and last frame included.

    The frames of pytorchvideo's uniform_temporal_subsample, exactly: those of a float32
    torch.linspace, rounded down.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.

    Returns:
        clip_len positions, non-decreasing, within [0, num_frames).

    Raises:
        ValueError: if either is below 1.
    """
    if num_frames < 1 or clip_len < 1:
        raise ValueError(f"num_frames {num_frames} and clip_len {clip_len} must be at least 1")
    if clip_len == 1:
        return [0]
    # torch.linspace rounds its step to float32, counts the steps from the nearer end, and rounds
    # each sum to float32 once. Sums in float64 are exact before that.
    last = num_frames - 1
    step = float(np.float32(last) / np.float32(clip_len - 1))
    index = np.arange(clip_len)
    from_start, from_end = step * index, last - step * (clip_len - 1 - index)
    spread = np.where(index < clip_len // 2, from_start, from_end).astype(np.float32)
    positions: list[int] = spread.clip(0, last).astype(np.int64).tolist()
    return positions


def view_positions(num_frames: int, clip_len: int, num_views: int = 1) -> list[int]:
    """Frame positions of several views of a segment, shifted against one another in time.

    Each view spans the whole segment. The views divide the stride of the frames evenly; the middle
    one of an odd number, and a single one, is `uniform_positions`.

    Args:
        num_frames: frames in the segment, at least 1.
        clip_len: frames that the model sees, at least 1.
        num_views: views, at least 1.

    Returns:
        num_views * clip_len positions, one view after the other, within [0, num_frames).

    Raises:
        ValueError: if one is below 1.
    """
    if num_views < 1:
        raise ValueError(f"num_views {num_views} must be at least 1")
    middle = np.array(uniform_positions(num_frames, clip_len))
    half = np.float32(0.5)
    # In strides, within (-1/2, 1/2).
    phases = (np.arange(num_views, dtype=np.float32) + half) / np.float32(num_views) - half
    shifts = (phases * np.float32(num_frames / clip_len)).round().astype(np.int64)
    positions: list[int] = (middle + shifts[:, None]).clip(0, num_frames - 1).ravel().tolist()
    return positions
