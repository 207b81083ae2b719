"""Video files, decoded with PyAV."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
import torch
from torch import Tensor

from k400tiny_lib.data.sampling import uniform_indices
from k400tiny_lib.data.video_files import VIDEO_SUFFIXES
from k400tiny_lib.errors import UserError

__all__ = ["VIDEO_SUFFIXES", "read_video", "sample_video"]

Image = np.ndarray[Any, np.dtype[np.uint8]]
Result = TypeVar("Result")


def read_video(path: Path, num_frames: int) -> Tensor:
    """Decode frames spread evenly over a video, first and last one included.

    Args:
        path: the file.
        num_frames: frames wanted, at least 1; a shorter video repeats frames.

    Returns:
        uint8 (num_frames, H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file cannot be decoded, is truncated or holds no video.
    """
    images = sample_video(path, num_frames, lambda image: image)
    if len({image.shape for image in images}) > 1:
        raise UserError(f"{path} changes its frame size on the way.")
    return torch.from_numpy(np.stack(images))


def sample_video(path: Path, num_frames: int, process: Callable[[Image], Result]) -> list[Result]:
    """Decode frames spread evenly over a video and hand each one on at once.

    What containers say of their length is often wrong or missing, so the packets are counted, which
    is cheap, and the frames that came out of them too. Where the two differ (frames without a
    packet of their own, packets without a frame) the video is decoded once more. One frame is in
    memory at a time, beside what `process` keeps.

    Args:
        path: the file.
        num_frames: frames wanted, at least 1; a shorter video repeats frames.
        process: called once for each distinct frame with uint8 (H, W, 3), RGB, upright.

    Returns:
        What `process` returned, num_frames of them in order of time.

    Raises:
        UserError: if the file cannot be decoded, is truncated or holds no video.
    """
    try:
        expected = _count_packets(path)
        found: dict[int, Result] = {}
        # A second pass has the true count; a third would only meet a decoder of many minds.
        for _ in range(2):
            indices = uniform_indices(expected, num_frames).tolist() if expected else []
            total, found = _process_frames(path, set(indices), process)
            if total == expected:
                break
            expected = total
        if not expected or set(indices) - found.keys():
            raise UserError(f"{path} holds no frames.")
    except (av.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(f"{path} cannot be decoded: {reason}.") from None
    return [found[index] for index in indices]


def _process_frames(
    path: Path, wanted: set[int], process: Callable[[Image], Result]
) -> tuple[int, dict[int, Result]]:
    results: dict[int, Result] = {}
    position = -1
    for position, frame in enumerate(_decoded(path)):
        if position in wanted:
            image = frame.to_ndarray(format="rgb24")
            # Telephones store upright videos lying down, with a note to turn them.
            turns = round(frame.rotation / 90) % 4
            results[position] = process(np.ascontiguousarray(np.rot90(image, turns)))
    return position + 1, results


def _count_packets(path: Path) -> int:
    with av.open(str(path)) as container:
        stream = _stream(path, container)
        # Half a download decodes without complaint, to half the video.
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        packets = [packet.is_corrupt for packet in container.demux(stream) if packet.size]
        if end > path.stat().st_size or any(packets):
            raise UserError(f"{path} is truncated.")
        return len(packets)


def _decoded(path: Path) -> Iterator[Any]:
    with av.open(str(path)) as container:
        stream = _stream(path, container)
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _stream(path: Path, container: Any) -> Any:
    if not container.streams.video:
        raise UserError(f"{path} has no video stream.")
    return container.streams.video[0]
