"""What training does to clips so that no epoch sees the same pixels twice."""

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from k400tiny_lib.config import NONE
from k400tiny_lib.data.loading.pytorchvideo_transforms import MixVideo, RandAugment
from k400tiny_lib.data.loading.transforms import centre_crop
from k400tiny_lib.errors import UserError

MIXING = "strong"  # the augmentation that also mixes the clips of a batch
LIGHT = ("none", "flip")  # they draw from the generator that they are given, nothing else

# Less of the frame goes than the 92 % of ImageNet recipes: the actor may stand at its edge.
_CROP_AREA = (0.35, 1.0)
_JITTER = v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2)
_RAND_AUGMENT = RandAugment(magnitude=9, num_layers=2, prob=0.5)  # pytorchvideo's defaults
_MIXUP_ALPHA, _CUTMIX_ALPHA = 0.8, 1.0  # of MViT's Kinetics recipe (arXiv:2104.11227)


@contextmanager
def seeded(*numbers: int) -> Iterator[torch.Generator]:
    """Make torch's CPU randomness in the block a function of some numbers, then put it back.

    Args:
        numbers: such as seed, epoch, position. They are hashed, not added: the streams of
            neighbouring clips and epochs must not overlap.

    Yields:
        torch's default generator, which the transforms of torchvision and pytorchvideo draw from.
    """
    state = torch.get_rng_state()
    # torch.manual_seed would seed the GPUs as well.
    torch.default_generator.manual_seed(_hashed(numbers))
    try:
        yield torch.default_generator
    finally:
        torch.set_rng_state(state)


def own_generator(*numbers: int) -> torch.Generator:
    """A generator with the stream that `seeded` gives torch's, which stays untouched.

    Threads may draw from their own generators side by side.
    """
    return torch.Generator().manual_seed(_hashed(numbers))


def _hashed(numbers: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def augment(
    images: Tensor,
    crop_size: int,
    augmentation: str,
    may_flip: bool = True,
    generator: torch.Generator = torch.default_generator,
) -> Tensor:
    """Crop a clip for training, the same way in all its frames.

    Args:
        images: uint8 (T, C, H, W), RGB in [0, 255], the short side at least crop_size.
        crop_size: side of the square that comes out, in pixels.
        augmentation: `none` (centre crop), `flip` (and mirrored, or not), `standard` (random
            resized crop, flip, colour jitter) or `strong` (and RandAugment).
        may_flip: False keeps the clip from being mirrored.
        generator: decides about mirroring. Beyond LIGHT it must be torch's default one, which the
            transforms of torchvision and pytorchvideo draw from.

    Returns:
        uint8 (T, C, crop_size, crop_size).
    """
    if augmentation in LIGHT:
        images = centre_crop(images, crop_size)
    else:
        images = v2.RandomResizedCrop(crop_size, scale=_CROP_AREA, antialias=True)(images)
    # Drawn even where it may not flip: what follows does not depend on the class.
    mirrored = augmentation != "none" and bool(torch.rand((), generator=generator) < 0.5)
    if mirrored and may_flip:
        images = images.flip(-1)
    if augmentation in ("standard", MIXING):
        images = _JITTER(images)
    if augmentation == MIXING:
        floats: Tensor = _RAND_AUGMENT(images / 255)  # it wants RGB in [0, 1]
        images = (floats * 255).round().clamp(0, 255).to(torch.uint8)
    return images


def mix_batch(clips: Tensor, targets: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Blend each clip with another of its batch (MixUp) or paste a box of it (CutMix).

    One of the two per batch, on the device of the clips; randomness is torch's on the CPU.

    Args:
        clips: float32 (N, C, T, H, W), N at least 2; overwritten.
        targets: int64 (N,), class ids.
        num_classes: K.

    Returns:
        The mixed clips, and float32 (N, K) targets whose rows sum to 1.
    """
    mix = MixVideo(mixup_alpha=_MIXUP_ALPHA, cutmix_alpha=_CUTMIX_ALPHA, num_classes=num_classes)
    mixed, soft = mix(clips, targets)
    return mixed, soft.float()


def no_flip_targets(no_flip_classes: str, categories: Mapping[str, int]) -> frozenset[int]:
    """Class ids of the parameter `no_flip_classes`.

    Args:
        no_flip_classes: labels separated by commas, or `none`.
        categories: class ids by label.

    Raises:
        UserError: for a label that the data does not have.
    """
    if no_flip_classes == NONE:
        return frozenset()
    labels = [label.strip() for label in no_flip_classes.split(",") if label.strip()]
    for label in labels:
        if label not in categories:
            near = difflib.get_close_matches(label, categories, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else "Needed: labels of the data."
            raise UserError(f"no_flip_classes: the data has no class {label!r}. {hint}")
    return frozenset(categories[label] for label in labels)
