"""Augmentation: deterministic by seed, the same in all frames; mixed targets add up."""

from typing import get_args

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.config import Config, resolve
from k400tiny_lib.data.loading.augmentation import (
    AUGMENTATIONS,
    mix,
    no_flip_targets,
    seeded,
    seeded_generator,
)
from k400tiny_lib.errors import UserError


def smooth_frames(num_frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (num_frames, 3, 6, 8), dtype=torch.uint8, generator=generator)
    return F.resize(coarse, [36, 48], antialias=True)


def augment(images: torch.Tensor, kind: str, *numbers: int, may_flip: bool = True) -> torch.Tensor:
    """A clip cropped to 32 px by an augmentation, seeded with some numbers."""
    with seeded(*numbers) as generator:
        return AUGMENTATIONS[kind].per_clip(images, 32, may_flip, generator)


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_all_frames_of_a_clip_are_treated_alike(kind: str) -> None:
    still = smooth_frames(1).expand(5, -1, -1, -1)
    for seed in range(40):  # RandAugment has 14 operations
        clip = augment(still, kind, seed)
        assert clip.shape == (5, 3, 32, 32)
        assert clip.dtype == torch.uint8
        assert torch.equal(clip, clip[:1].expand_as(clip))


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_the_seed_alone_decides(kind: str) -> None:
    frames = smooth_frames()
    torch.manual_seed(1)
    first = augment(frames, kind, 3, 1, 4)
    torch.manual_seed(2)
    assert torch.equal(augment(frames, kind, 3, 1, 4), first)


def test_augmentation_does_not_advance_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    augment(smooth_frames(), "strong", 1)
    assert torch.equal(torch.rand(3), expected)


def test_flip_mirrors_half_of_the_clips_and_none_mirrors_nothing() -> None:
    frames = smooth_frames()
    plain = F.center_crop(frames, [32, 32])
    mirrored = 0
    for seed in range(200):
        assert torch.equal(augment(frames, "none", seed), plain)
        clip = augment(frames, "flip", seed)
        is_mirrored = torch.equal(clip, F.horizontal_flip(plain))
        assert is_mirrored or torch.equal(clip, plain)
        mirrored += is_mirrored
    assert 70 <= mirrored <= 130  # of 200 fair coins, four standard deviations


@pytest.mark.parametrize("kind", ["flip", "standard"])
def test_a_class_that_mirroring_changes_is_never_mirrored(kind: str) -> None:
    """Whatever else happens to it: its left half stays darker than its right half."""
    ramp = torch.linspace(0, 255, 48).expand(2, 3, 36, 48).to(torch.uint8)
    mirrored = 0
    for seed in range(60):
        for may_flip in (False, True):
            clip = augment(ramp, kind, seed, may_flip=may_flip).float()
            rises = bool(clip[..., 16:].mean() > clip[..., :16].mean())
            assert rises or may_flip
            mirrored += not rises
    assert mirrored > 0


def test_forbidding_the_flip_changes_nothing_else() -> None:
    frames = smooth_frames()
    equal = 0
    for seed in range(40):
        allowed = augment(frames, "strong", seed, may_flip=True)
        forbidden = augment(frames, "strong", seed, may_flip=False)
        equal += torch.equal(allowed, forbidden)
    assert 8 <= equal <= 32  # those of 40 that were not mirrored anyway, four standard deviations


def test_strong_augmentation_changes_clips_and_keeps_their_range() -> None:
    frames = smooth_frames()
    results = [augment(frames, "strong", seed) for seed in range(20)]
    assert len({clip.numpy().tobytes() for clip in results}) == len(results)
    assert torch.stack(results).float().std(dim=0).mean() > 10  # gray levels of 255


def test_mixed_targets_sum_to_one_and_say_how_much_of_each_clip_is_there() -> None:
    """Clip i is constantly i: the mean of the mixture is the mean under its target."""
    targets = torch.arange(4)
    clips = targets.float().view(4, 1, 1, 1, 1).expand(4, 3, 2, 16, 16)
    weights = set()
    for seed in range(30):
        with seeded(seed):
            mixed, soft = mix(clips.clone(), targets, num_classes=6)
        assert soft.shape == (4, 6)
        torch.testing.assert_close(soft.sum(1), torch.ones(4))
        torch.testing.assert_close(mixed.mean((1, 2, 3, 4)), soft @ torch.arange(6.0))
        weights.add(round(float(soft.max()), 4))
    assert len(weights) > 10


def test_no_flip_classes_become_targets_and_unknown_labels_are_refused() -> None:
    categories = {"moving left": 0, "moving right": 1, "growing": 2}
    assert no_flip_targets("none", categories) == frozenset()
    assert no_flip_targets("moving left, moving right", categories) == {0, 1}
    with pytest.raises(UserError, match=r"no_flip_classes: .*'moving lift'.*'moving left'"):
        no_flip_targets("moving lift", categories)


def settings(kind: str, batch_size: int) -> dict[str, str]:
    return {
        "data_path": "x",
        "annotations": "y",
        "augmentation": kind,
        "batch_size": str(batch_size),
    }


@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_every_augmentation_is_a_choice_and_mixing_needs_two_clips_in_a_batch(kind: str) -> None:
    assert resolve("train", settings(kind, 2)).augmentation == kind
    if AUGMENTATIONS[kind].per_batch is None:
        assert resolve("train", settings(kind, 1)).batch_size == 1
    else:
        with pytest.raises(UserError, match=rf"^batch_size: 1, but augmentation={kind} mixes"):
            resolve("train", settings(kind, 1))


def test_every_choice_is_an_augmentation() -> None:
    assert get_args(Config.model_fields["augmentation"].annotation) == tuple(AUGMENTATIONS)


@pytest.mark.parametrize("kind", [k for k, a in AUGMENTATIONS.items() if a.is_light])
def test_light_augmentations_draw_from_their_generator_only(kind: str) -> None:
    frames = smooth_frames()
    expected = [augment(frames, kind, seed) for seed in range(8)]
    before = torch.get_rng_state()
    for seed, clip in enumerate(expected):
        generator = seeded_generator(seed)
        assert torch.equal(AUGMENTATIONS[kind].per_clip(frames, 32, True, generator), clip)
    assert torch.equal(torch.get_rng_state(), before)


COMMAS = {"Putting something, something on it": 0, "moving left": 1, "a, b": 2, "a": 3, "b": 4}


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("Putting something, something on it", {0}),
        ('"Putting something, something on it", moving left', {0, 1}),
        ("Moving_Left,putting  something,something on it", {0, 1}),
        ("a, b", {2}),
        ('"a", b', {3, 4}),
        ('"a, b", a', {2, 3}),
    ],
)
def test_a_label_with_commas_can_be_named(text: str, targets: set[int]) -> None:
    assert no_flip_targets(text, COMMAS) == targets


@pytest.mark.parametrize("text", ["Putting something, somthing on it", "moving left, moving lift"])
def test_an_unknown_label_with_commas_is_one_line_with_the_nearest(text: str) -> None:
    with pytest.raises(UserError, match=r"no class '.*'\. Did you mean '(Putting|moving left)"):
        no_flip_targets(text, COMMAS)
