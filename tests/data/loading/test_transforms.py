"""Resize, crop, normalize: against torchvision's own presets."""

import pytest
import torch
from torchvision.models.video import R2Plus1D_18_Weights
from torchvision.transforms.v2 import functional as F

from k400tiny_lib.data.loading.transforms import normalize, resize_short_side
from k400tiny_lib.models.architectures import ARCHITECTURES
from tests.helpers.frames import resize_and_crop


@pytest.mark.parametrize("size", [(128, 171), (171, 128), (336, 336), (64, 64)])
def test_short_side_gets_the_length_and_the_aspect_stays(size: tuple[int, int]) -> None:
    frames = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    height, width = resize_short_side(frames, 64).shape[-2:]
    assert min(height, width) == 64
    assert abs(height / width - size[0] / size[1]) < 1 / 64  # a pixel of rounding


def test_a_clip_gets_the_pixels_of_torchvisions_preset() -> None:
    """The preset resizes to 128x171 and crops 112; frames of that aspect make the two comparable.

    It interpolates in the same way, without antialiasing, which makes no difference where frames
    have their size already.
    """
    frames = torch.randint(0, 256, (4, 128, 171, 3), dtype=torch.uint8)
    design = ARCHITECTURES["r2plus1d_18"]
    ours = normalize(resize_and_crop(frames, 128, 112)[None], design.mean, design.std)[0]
    preset = R2Plus1D_18_Weights.KINETICS400_V1.transforms()(frames.permute(0, 3, 1, 2))
    assert ours.shape == preset.shape == (3, 4, 112, 112)
    torch.testing.assert_close(ours, preset, atol=1e-5, rtol=0)  # float32 rounding


def test_frames_are_resized_alone_as_in_a_batch() -> None:
    frames = torch.randint(0, 256, (5, 3, 90, 120), dtype=torch.uint8)
    alone = torch.cat([resize_short_side(frame[None], 40) for frame in frames])
    assert torch.equal(resize_short_side(frames, 40), alone)


def test_resizing_uint8_is_resizing_floats_to_a_gray_level() -> None:
    frames = torch.randint(0, 256, (2, 3, 90, 120), dtype=torch.uint8)
    exact = F.resize(frames.float(), [40], antialias=True)
    # Two passes with 8-bit intermediates: at most one gray level each.
    assert (resize_short_side(frames, 40).float() - exact).abs().max() <= 2
