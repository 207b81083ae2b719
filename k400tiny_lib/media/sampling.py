"""Frames spread evenly, without PyTorch: what a served model and `predict` need of sampling."""

import numpy as np


def uniform_positions(num_frames: int, clip_len: int) -> list[int]:
    """Spread frame positions evenly over a segment, first and last frame included.

    pytorchvideo's uniform_temporal_subsample to the frame: that is torch.linspace in float32, each
    value rounded once, then rounded down.

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
    last = num_frames - 1
    step = np.float64(np.float32(last) / np.float32(clip_len - 1))
    places = np.arange(clip_len, dtype=np.float64)
    # Its two halves are measured from the nearer end.
    from_end = last - step * (clip_len - 1 - places)
    spread = np.where(places < clip_len // 2, step * places, from_end).astype(np.float32)
    positions: list[int] = spread.clip(0, last).astype(np.int64).tolist()
    return positions


def view_positions(num_frames: int, clip_len: int, num_views: int = 1) -> list[int]:
    """Frame positions of several views of a segment, shifted against one another in time.

    A clip spans its whole segment, so views differ in phase: they divide the stride of the frames
    evenly. The one in the middle of an odd number, and a single one, is `uniform_positions`.
    In float32, where a half is rounded to even.

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
    centre = np.array(uniform_positions(num_frames, clip_len))
    half = np.float32(0.5)
    phases = (np.arange(num_views, dtype=np.float32) + half) / np.float32(num_views) - half
    shifts = (phases * np.float32(num_frames / clip_len)).round().astype(np.int64)
    positions: list[int] = (centre + shifts[:, None]).clip(0, num_frames - 1).ravel().tolist()
    return positions
