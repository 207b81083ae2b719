"""The views of a video: several clips in time, several crops in space, averaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.data.loading.transforms import center_crop, resize_exactly
from k400tiny_lib.errors import UserError
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.models.loaded import Geometry


@dataclass(frozen=True)
class ViewProtocol:
    """How many views of a video are averaged: num_clips in time x num_crops in space."""

    num_clips: int
    num_crops: int

    @property
    def num_views(self) -> int:
        """Number of views that are averaged."""
        return self.num_clips * self.num_crops

    @property
    def extra_center(self) -> bool:
        """Whether no averaged view is central in time: an even number of clips has no middle."""
        return self.num_clips % 2 == 0

    @property
    def num_loaded(self) -> int:
        """Views that ViewDataset yields: those averaged, and the center view if it is extra."""
        return self.num_views + self.extra_center

    @property
    def center(self) -> int:
        """Index of the view that is central in time and space among those of ViewDataset."""
        if self.extra_center:
            return self.num_views
        return self.num_clips // 2 * self.num_crops + self.num_crops // 2

    def text(self, geometry: Geometry) -> str:
        """Clips, crops and pixel sizes in words."""
        clips = "1 clip" if self.num_clips == 1 else f"{self.num_clips} clips"
        crops = "the center crop" if self.num_crops == 1 else f"{self.num_crops} crops"
        mean = "" if self.num_views == 1 else ", probabilities averaged"
        return (
            f"{clips} of {geometry.clip_len} frames spread over the whole segment x {crops} of "
            f"{geometry.crop_size} px (resized to {'x'.join(map(str, geometry.resize))}){mean}"
        )


def check_views(clips: Sequence[Clip], protocol: ViewProtocol) -> None:
    """Raise UserError for more temporal views than a clip has frames, naming the shortest clip."""
    shortest = min(clips, key=lambda clip: clip.num_frames)
    if protocol.num_clips > shortest.num_frames:
        raise UserError(
            f"num_clips: {protocol.num_clips} views, but {shortest.video} has "
            f"{shortest.num_frames} frames. Needed: at most {shortest.num_frames}."
        )


class ViewDataset(Dataset[tuple[Tensor, int]]):
    """All views of a clip and its position in the split: uint8 (V, C, T, crop, crop), int.

    V is `protocol.num_loaded`, ordered by time and, at equal time, from left (or top) to right (or
    bottom); an extra center view comes last. A frame that several views share is decoded once.
    """

    def __init__(
        self, clips: Sequence[Clip], data_path: Path, geometry: Geometry, protocol: ViewProtocol
    ) -> None:
        self.clips = clips
        self.data_path = data_path
        self.geometry = geometry
        self.protocol = protocol

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        clip, protocol = self.clips[position], self.protocol
        clip_len = self.geometry.clip_len
        times = torch.from_numpy(view_indices(clip.num_frames, clip_len, protocol.num_clips))
        if protocol.extra_center:
            times = torch.cat([times, torch.from_numpy(view_indices(clip.num_frames, clip_len))])
        decoded, slots = torch.unique(times, return_inverse=True)
        frames = read_frames(self.data_path / clip.video, (decoded + clip.segment[0]).tolist())
        crops = crop_views(frames, self.geometry, protocol.num_crops)
        views = [crop[:, slot] for slot in slots[: protocol.num_clips] for crop in crops]
        if protocol.extra_center:
            views.append(crops[protocol.num_crops // 2][:, slots[-1]])
        return torch.stack(views), position


def crop_views(frames: Tensor, geometry: Geometry, num_crops: int) -> list[Tensor]:
    """Resize, then crop the center (1 crop), or both ends of the long side and the center (3).

    Args:
        frames: uint8 (T, H, W, C), RGB in [0, 255].
        geometry: sizes to resize to and to crop.
        num_crops: 1 or 3.

    Returns:
        num_crops tensors, uint8 (C, T, crop_size, crop_size).
    """
    size = geometry.crop_size
    video = resize_exactly(frames, geometry.resize, geometry.antialias)
    center = center_crop(video, size)
    if num_crops == 1:
        return [center]
    from k400tiny_lib.data.loading.pytorchvideo_transforms import uniform_crop

    return [uniform_crop(video, size, 0), center, uniform_crop(video, size, 2)]
