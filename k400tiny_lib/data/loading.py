"""From frame folders to batches: decode only what a clip needs, in worker processes."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from k400tiny_lib.config import AUTO
from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.sampling import jittered_indices, uniform_indices
from k400tiny_lib.data.sources import frame_files
from k400tiny_lib.data.transforms import random_flip, resize_and_crop
from k400tiny_lib.errors import UserError

_MAX_AUTO_WORKERS = 8


def decode_frame(path: Path) -> np.ndarray:
    """Decode one image file.

    Returns:
        uint8 (H, W, 3), RGB in [0, 255].

    Raises:
        UserError: if the file is missing or no image; the message names it.
    """
    try:
        encoded = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise UserError(f"data_path: {path} cannot be read: {error.strerror}.") from None
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB) if encoded.size else None
    if image is None:
        raise UserError(f"data_path: {path} is no image. Run prepare_data again, or mend the file.")
    return image


def read_frames(folder: Path, indices: Sequence[int]) -> Tensor:
    """Decode some frames of a clip; an index that occurs twice is decoded once.

    Args:
        folder: the clip's folder.
        indices: positions in the natural order of the frames.

    Returns:
        uint8 (T, H, W, 3), RGB in [0, 255], T = len(indices).

    Raises:
        UserError: if a frame is missing, unreadable or of another size than the first.
    """
    files = frame_files(folder) if folder.is_dir() else []
    if not files or max(indices) >= len(files):
        raise UserError(
            f"data_path: {folder} has {len(files)} frames, the annotations need "
            f"{max(indices) + 1}. Run prepare_data again."
        )
    images = {index: decode_frame(files[index]) for index in dict.fromkeys(indices)}
    first = images[indices[0]]
    for index, image in images.items():
        if image.shape != first.shape:
            raise UserError(
                f"data_path: {files[index]} is {image.shape[1]}x{image.shape[0]}, other frames of "
                f"the clip are {first.shape[1]}x{first.shape[0]}. Needed: one size per clip."
            )
    return torch.from_numpy(np.stack([images[index] for index in indices]))


class ClipDataset(Dataset[tuple[Tensor, int, int]]):
    """The clips of a split as uint8 tensors (C, T, crop, crop), with target and position.

    Randomness depends on (seed, epoch, position) alone: neither the number of workers nor a
    resumed run changes what a clip looks like in an epoch.

    Attributes:
        epoch: set it before each pass over the loader.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        data_path: Path,
        *,
        clip_len: int,
        resize_size: int,
        crop_size: int,
        augmentation: str = "none",
        training: bool = False,
        seed: int = 0,
    ) -> None:
        self.clips = clips
        self.data_path = data_path
        self.clip_len = clip_len
        self.resize_size = resize_size
        self.crop_size = crop_size
        self.augmentation = augmentation
        self.training = training
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        clip = self.clips[position]
        generator = torch.Generator()
        # A hash, not a sum: the streams of neighbouring clips and epochs must not overlap.
        entropy = np.random.SeedSequence([self.seed, self.epoch, position]).generate_state(
            1, np.uint64
        )
        generator.manual_seed(int(entropy[0]))
        if self.training:
            offsets = jittered_indices(clip.num_frames, self.clip_len, generator)
        else:
            offsets = uniform_indices(clip.num_frames, self.clip_len)
        frames = read_frames(self.data_path / clip.video, (offsets + clip.segment[0]).tolist())
        pixels = resize_and_crop(frames, self.resize_size, self.crop_size)
        if self.training and self.augmentation == "flip":
            pixels = random_flip(pixels, generator)
        return pixels.contiguous(), clip.target, position


def worker_count(num_workers: int | str, processes_per_node: int) -> int:
    """Loader processes for one training process; `auto` shares the node's cores."""
    if num_workers != AUTO:
        return int(num_workers)
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, min(_MAX_AUTO_WORKERS, cores // processes_per_node))


def make_loader(
    dataset: ClipDataset,
    sampler: Sampler[int] | Sequence[int],
    *,
    batch_size: int,
    num_workers: int,
    drop_last: bool = False,
) -> DataLoader[tuple[Tensor, int, int]]:
    """Batches of (uint8 (N, C, T, H, W), int64 (N,) targets, int64 (N,) positions)."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_one_thread,
    )


def _one_thread(worker: int) -> None:
    # Workers are as many as the cores; OpenCV's own threads would only fight them.
    cv2.setNumThreads(1)
