"""Video files, decoded with PyAV."""

from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from k400tiny_lib.data.sampling import uniform_indices
from k400tiny_lib.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov")


def read_video(path: Path, num_frames: int) -> Tensor:
    """Decode frames spread evenly over a video, first and last one included.

    The video is decoded twice, first to count: what containers say of their length is often wrong
    or missing, and keeping every frame would need memory without bound.

    Args:
        path: the file.
        num_frames: frames wanted, at least 1; a shorter video repeats frames.

    Returns:
        uint8 (num_frames, H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file cannot be decoded or holds no video.
    """
    try:
        total = sum(1 for _ in _decoded(path))
        if not total:
            raise UserError(f"{path} holds no frames.")
        indices = uniform_indices(total, num_frames).tolist()
        wanted = set(indices)
        frames = {
            position: frame.to_ndarray(format="rgb24")
            for position, frame in enumerate(_decoded(path))
            if position in wanted
        }
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UserError(f"{path} cannot be decoded: {error}.") from None
    return torch.from_numpy(np.stack([frames[index] for index in indices]))


def _decoded(path: Path):  # type: ignore[no-untyped-def]
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise UserError(f"{path} has no video stream.")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        yield from container.decode(stream)
