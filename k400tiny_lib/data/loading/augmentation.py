"""Random augmentation of training clips, per clip and per batch.

To add one, write its function and its row of `AUGMENTATIONS` here, and add its name to the choices
of the parameter `augmentation` (`config/parameters.py`).
"""

import csv
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from k400tiny_lib.config import NONE
from k400tiny_lib.data.loading.transforms import center_crop
from k400tiny_lib.data.sources.labels import label_key
from k400tiny_lib.errors import UserError

# ImageNet recipes crop down to 8 % of a frame; the actor may be at the edge, so keep 35 %.
_CROP_AREA = (0.35, 1.0)
_JITTER = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
# Of MViT's Kinetics recipe (arXiv:2104.11227).
_MIX_ALPHAS = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


@contextmanager
def seeded(*numbers: int) -> Iterator[torch.Generator]:
    """Seed torch's CPU generator with some numbers for a block, then restore its state.

    Args:
        numbers: such as seed, epoch, position. They are hashed, not added: the streams of
            neighboring clips and epochs must not overlap.

    Yields:
        torch's default generator, which the transforms of torchvision and pytorchvideo draw from.
    """
    with torch.random.fork_rng(devices=[], device_type="cuda"):  # no GPU's generator
        # torch.manual_seed would seed the GPUs as well.
        yield torch.default_generator.manual_seed(_hashed(numbers))


def seeded_generator(*numbers: int) -> torch.Generator:
    """A new generator with the stream of `seeded(*numbers)`.

    Threads may draw from separate generators at the same time.
    """
    return torch.Generator().manual_seed(_hashed(numbers))


def _hashed(numbers: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def jittered_indices(num_frames: int, clip_len: int, generator: torch.Generator) -> Tensor:
    """Cut a segment into equal parts and take a random frame of each.

    The training-time counterpart of `media.sampling.uniform_indices`, as Temporal Segment Networks
    samples (Wang et al. 2016, arXiv:1608.00859).

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
    offsets = torch.rand(clip_len, generator=generator, dtype=torch.float64)
    starts = torch.arange(clip_len, dtype=torch.float64)
    indices = (starts + offsets) * (num_frames / clip_len)
    return indices.long().clamp(max=num_frames - 1)


def crop_only(images: Tensor, crop_size: int, may_flip: bool, generator: torch.Generator) -> Tensor:
    """No randomness: the center crop, as in validation."""
    return center_crop(images, crop_size)


def crop_and_flip(
    images: Tensor, crop_size: int, may_flip: bool, generator: torch.Generator
) -> Tensor:
    """Center crop, mirrored in half of the clips."""
    return _random_flip(center_crop(images, crop_size), may_flip, generator)


def standard(images: Tensor, crop_size: int, may_flip: bool, generator: torch.Generator) -> Tensor:
    """Random resized crop, flip and color jitter."""
    images = v2.RandomResizedCrop(crop_size, scale=_CROP_AREA, antialias=True)(images)
    jittered: Tensor = _JITTER(_random_flip(images, may_flip, generator))
    return jittered


def strong(images: Tensor, crop_size: int, may_flip: bool, generator: torch.Generator) -> Tensor:
    """`standard`, then RandAugment."""
    images = standard(images, crop_size, may_flip, generator)
    floats: Tensor = _rand_augment()(images / 255)  # expects RGB in [0, 1]
    return (floats * 255).round().clamp(0, 255).to(torch.uint8)


@cache
def _rand_augment() -> Callable[[Tensor], Tensor]:
    from k400tiny_lib.data.loading.pytorchvideo_transforms import RandAugment

    augment: Callable[[Tensor], Tensor] = RandAugment(magnitude=9, num_layers=2, prob=0.5)
    return augment  # with pytorchvideo's defaults


def _random_flip(images: Tensor, may_flip: bool, generator: torch.Generator) -> Tensor:
    # Draw even if the class must not be mirrored: later draws must not depend on the class.
    flip = bool(torch.rand((), generator=generator) < 0.5)
    return images.flip(-1) if flip and may_flip else images


def mix(clips: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Blend each clip with another of its batch (MixUp) or paste a box of it (CutMix).

    One of the two per batch, on the device of the clips.

    Args:
        clips: float32 (N, C, T, H, W), N at least 2; overwritten.
        targets: int64 (N,), class ids.
        num_classes: K.

    Returns:
        The mixed clips, and float32 (N, K) targets; each row sums to 1.
    """
    from k400tiny_lib.data.loading.pytorchvideo_transforms import MixVideo

    mixed, soft = MixVideo(**_MIX_ALPHAS, num_classes=num_classes)(clips, targets)
    return mixed, soft.float()


@dataclass(frozen=True)
class Augmentation:
    """What training does to a clip and to a batch.

    Attributes:
        per_clip: (images, crop_size, may_flip, generator) -> images: uint8 (T, C, H, W), RGB in
            [0, 255], short side at least crop_size, to uint8 (T, C, crop_size, crop_size). All
            frames of a clip are changed alike. Without `may_flip` a clip is not mirrored.
            `generator` is torch's default one, seeded, unless `is_light`.
        per_batch: (clips, targets, num_classes) -> (clips, soft targets), as `mix`, with
            randomness from torch's default CPU generator; None to leave batches as they are.
        is_light: `per_clip` draws from `generator` only and takes about as long as copying the
            clip. A thread can then run it, which is faster than a worker process.
    """

    per_clip: Callable[[Tensor, int, bool, torch.Generator], Tensor]
    per_batch: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]] | None = None
    is_light: bool = False


# By the value of the parameter `augmentation`.
AUGMENTATIONS = {
    "none": Augmentation(crop_only, is_light=True),
    "flip": Augmentation(crop_and_flip, is_light=True),
    "standard": Augmentation(standard),
    "strong": Augmentation(strong, per_batch=mix),
}


def no_flip_targets(no_flip_classes: str, categories: Mapping[str, int]) -> frozenset[int]:
    """Class ids of the parameter `no_flip_classes`: labels separated by commas, or `none`.

    A label may contain commas. Where the text could be read in two ways, all labels with commas are
    put in double quotes, as in a CSV. Case, spaces and underscores do not count.

    Raises:
        UserError: for a label that is not among the categories (class ids by label).
    """
    if no_flip_classes == NONE:
        return frozenset()
    by_key = {_spelling(label): index for label, index in categories.items()}

    def class_id(fields: list[str]) -> int | None:
        text = ",".join(fields)
        return categories.get(text.strip(), by_key.get(_spelling(text)))

    fields = next(csv.reader([no_flip_classes], skipinitialspace=True))
    targets = set[int]()
    while fields:
        # The longest run of fields that is a label: "Putting something, something on a table".
        count = 1 if '"' in no_flip_classes else len(fields)
        while count > 1 and class_id(fields[:count]) is None:
            count -= 1
        if (index := class_id(fields[:count])) is not None:
            targets.add(index)
        elif label := fields[0].strip():
            raise _unknown_label(label, no_flip_classes, categories)
        fields = fields[count:]
    return frozenset(targets)


def _spelling(label: str) -> str:
    """The key of a label; spaces after the commas within it do not count."""
    return re.sub(r"\s*,\s*", ",", label_key(label.replace("_", " ")))


def _unknown_label(label: str, whole: str, categories: Mapping[str, int]) -> UserError:
    by_key = {_spelling(name): name for name in categories}
    for text, cutoff in ((whole, 0.9), (label, 0.6)):  # a label with commas, or one of a list
        if near := difflib.get_close_matches(_spelling(text), by_key, 1, cutoff):
            hint = f"Did you mean {by_key[near[0]]!r}?"
            return UserError(f"no_flip_classes: the data has no class {text!r}. {hint}")
    hint = "Needed: labels of the data, separated by commas."
    return UserError(f"no_flip_classes: the data has no class {label!r}. {hint}")
