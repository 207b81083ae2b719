"""The views of a video: several clips in time, several crops in space, averaged."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading import ClipTable, FrameReader
from k400tiny_lib.data.pytorchvideo_transforms import uniform_crop
from k400tiny_lib.data.sampling import view_indices
from k400tiny_lib.data.transforms import centre_crop


class ViewDataset(Dataset[tuple[Tensor, int, int]]):
    """The clips of a split, each as all of its views: uint8 (V, C, T, crop, crop).

    V is num_clips * num_crops, in order of time and, within one time, from the left (or top) to
    the right. Each frame is decoded once for all views.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: FrameReader,
        *,
        clip_len: int,
        crop_size: int,
        num_clips: int,
        num_crops: int,
    ) -> None:
        self.clips = ClipTable(clips)
        self.read = read
        self.clip_len = clip_len
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
        crops = crop_views(self.read(clip, used.tolist()), self.crop_size, self.num_crops)
        views = [crop[:, places[view]] for view in range(self.num_clips) for crop in crops]
        return torch.stack(views), clip.target, position


def crop_views(images: Tensor, crop_size: int, num_crops: int) -> list[Tensor]:
    """Crop the centre, or both ends of the long side and the centre.

    Args:
        images: uint8 (T, C, h, w), RGB in [0, 255], resized already.
        crop_size: side of the squares, in pixels, at most the short side.
        num_crops: 1 or 3.

    Returns:
        num_crops tensors, uint8 (C, T, crop_size, crop_size).
    """
    video = images.transpose(0, 1)  # (T, C, h, w) -> (C, T, h, w)
    centre = centre_crop(video, crop_size)
    if num_crops == 1:
        return [centre]
    return [uniform_crop(video, crop_size, 0), centre, uniform_crop(video, crop_size, 2)]
