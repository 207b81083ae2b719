"""The clips of a split as a PyTorch data set."""

from collections.abc import Sequence
from dataclasses import asdict

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.augmentation import (
    AUGMENTATIONS,
    jittered_indices,
    seeded,
    seeded_generator,
)
from k400tiny_lib.data.loading.readers import FrameReader
from k400tiny_lib.data.loading.transforms import center_crop
from k400tiny_lib.media.sampling import uniform_indices


class ClipTable:
    """Clips as Arrow columns, which forked workers share.

    Forked workers would copy a list of Python objects page by page, because reading an object
    updates its reference count (pytorch#13246).
    """

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._clips = pa.array([asdict(clip) for clip in clips])

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, position: int) -> Clip:
        values = self._clips[position].as_py()
        return Clip(**values | {"segment": tuple(values["segment"])})


class ClipDataset(Dataset[tuple[Tensor, int, int]]):
    """Clips as uint8 (C, T, crop, crop), each with its target and position.

    Randomness depends on (seed, epoch, position) only: a clip has the same pixels in an epoch for
    any number of workers and in a resumed run.

    Attributes:
        epoch: to be set before each pass over the loader.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        read: FrameReader,
        *,
        clip_len: int,
        crop_size: int,
        training: bool = False,
        augmentation: str = "none",
        no_flip: frozenset[int] = frozenset(),
        seed: int = 0,
        views: int = 0,
    ) -> None:
        """Store the settings; no frame is read.

        Args:
            clips: the clips of the split.
            read: reads their frames.
            clip_len: frames of a clip that the model sees.
            crop_size: side of the square crop, at most the short side that `read` gives.
            training: jitter the frame indices and augment; else uniform indices, center crop.
            augmentation: a key of `AUGMENTATIONS`.
            no_flip: targets of clips that are never mirrored.
            seed: of all randomness.
            views: epochs that differ; the others repeat them in turns. 0 if all differ.
        """
        self.clips = ClipTable(clips)
        self.read = read
        self.clip_len, self.crop_size = clip_len, crop_size
        self.training = training
        self.augmentation = AUGMENTATIONS[augmentation]
        self.no_flip = no_flip
        self.seed, self.views, self.epoch = seed, views, 0

    @property
    def is_light(self) -> bool:
        """Whether a clip is only copied and cropped: a worker process would take longer to send it.

        A thread can read such clips: they touch no global randomness.
        """
        copies: bool = getattr(self.read, "copies", False)
        return copies and (self.augmentation.is_light or not self.training)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        clip = self.clips[position]
        epoch = self.epoch % self.views if self.views else self.epoch
        numbers = (self.seed, epoch, position)
        if not self.training:
            indices = uniform_indices(clip.num_frames, self.clip_len)
            images = center_crop(self.read(clip, indices.tolist()), self.crop_size)
        elif self.augmentation.is_light:
            images = self._training_frames(clip, seeded_generator(*numbers))
        else:
            with seeded(*numbers) as generator:
                images = self._training_frames(clip, generator)
        # (T, C, H, W) -> (C, T, H, W)
        return images.transpose(0, 1).contiguous(), clip.target, position

    def _training_frames(self, clip: Clip, generator: torch.Generator) -> Tensor:
        indices = jittered_indices(clip.num_frames, self.clip_len, generator)
        images = self.read(clip, indices.tolist())
        may_flip = clip.target not in self.no_flip
        return self.augmentation.per_clip(images, self.crop_size, may_flip, generator)
