"""The views of a video: several clips in time, several crops in space, averaged."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.decoding import read_frames
from k400tiny_lib.data.pytorchvideo_transforms import uniform_crop
from k400tiny_lib.data.sampling import view_indices
from k400tiny_lib.data.transforms import centre_crop, resize_exactly


class ViewDataset(Dataset[tuple[Tensor, int, int]]):
    """The clips of a split, each as all of its views: uint8 (V, C, T, crop, crop).

    V is num_clips * num_crops, in order of time and, within one time, from the left (or top) to
    the right. Each frame is decoded once for all views.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        data_path: Path,
        *,
        clip_len: int,
        resize_size: int,
        crop_size: int,
        num_clips: int,
        num_crops: int,
    ) -> None:
        self.clips = clips
        self.data_path = data_path
        self.clip_len = clip_len
        self.resize_size = resize_size
        self.crop_size = crop_size
        self.num_clips = num_clips
        self.num_crops = num_crops

    @property
    def centre(self) -> int:
        """Number of the view that is central in time and space."""
        return (self.num_clips // 2) * self.num_crops + self.num_crops // 2

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        clip = self.clips[position]
        times = view_indices(clip.num_frames, self.clip_len, self.num_clips)
        used, places = torch.unique(times, return_inverse=True)
        frames = read_frames(self.data_path / clip.video, (used + clip.segment[0]).tolist())
        crops = crop_views(frames, self.resize_size, self.crop_size, self.num_crops)
        views = [crop[:, places[view]] for view in range(self.num_clips) for crop in crops]
        return torch.stack(views), clip.target, position


def crop_views(frames: Tensor, resize_size: int, crop_size: int, num_crops: int) -> list[Tensor]:
    """Resize the short side and crop the centre, or both ends of the long side and the centre.

    Args:
        frames: uint8 (T, H, W, C), RGB in [0, 255].
        resize_size, crop_size: in pixels, as for `transforms.resize_exactly`.
        num_crops: 1 or 3.

    Returns:
        num_crops tensors, uint8 (C, T, crop_size, crop_size).
    """
    video = resize_exactly(frames, resize_size)
    centre = centre_crop(video, crop_size)
    if num_crops == 1:
        return [centre]
    return [uniform_crop(video, crop_size, 0), centre, uniform_crop(video, crop_size, 2)]
