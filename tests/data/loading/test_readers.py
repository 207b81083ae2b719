"""Image files: against Pillow, and what happens when one is bad."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torchvision.io import decode_image

from k400tiny_lib.data.annotations import Clip
from k400tiny_lib.data.loading.readers import ImageFiles, read_frames
from k400tiny_lib.data.loading.transforms import resize_short_side
from k400tiny_lib.errors import UserError
from k400tiny_lib.models.weights import build_model, model_input
from tests.conftest import REAL_DATA, write_clip
from tests.helpers.frames import resize_and_crop

IMAGES = REAL_DATA / "k400tiny_images"
needs_real_data = pytest.mark.skipif(not IMAGES.is_dir(), reason="the real clips are not here")


@pytest.fixture
def clip(tmp_path: Path) -> Clip:
    write_clip(tmp_path / "clip", seed=0)
    return Clip("clip", (0, 5), 0, "clip")


def read_in_full(data_path: Path, clip: Clip, indices: list[int], size: int) -> torch.Tensor:
    images = read_frames(data_path / clip.video, indices).permute(0, 3, 1, 2)
    return resize_short_side(images, size)  # (T, H, W, C) -> (T, C, h, w)


@needs_real_data
def test_full_frames_are_those_of_torchvisions_decoder() -> None:
    for folder in sorted(IMAGES.iterdir())[:3]:
        ours = read_frames(folder, [0, 20])
        paths = [folder / "frame00.jpg", folder / "frame20.jpg"]
        theirs = torch.stack([decode_image(str(path)).permute(1, 2, 0) for path in paths])
        difference = (ours.int() - theirs.int()).abs().max()
        assert difference <= 1  # the same library, perhaps built differently


def test_reading_resized_frames_is_reading_and_resizing(tmp_path: Path, clip: Clip) -> None:
    offsets = [0, 2, 2, 5]
    read = ImageFiles(tmp_path, resize_size=24)
    frames = read_frames(tmp_path / "clip", offsets)
    whole = resize_and_crop(frames, 24, 24)
    images = read(clip, offsets)
    assert images.shape == (4, 3, 24, 28)
    assert torch.equal(images[..., 2:26].transpose(0, 1), whole)


def test_offsets_count_from_the_start_of_the_segment(tmp_path: Path) -> None:
    write_clip(tmp_path / "clip", seed=0)
    read = ImageFiles(tmp_path, resize_size=24)
    whole = read(Clip("clip", (0, 5), 0, ""), [3])
    assert torch.equal(read(Clip("clip", (2, 5), 0, ""), [1]), whole)


def test_only_the_frames_asked_for_are_read(tmp_path: Path, clip: Clip) -> None:
    (tmp_path / "clip" / "frame03.jpg").write_bytes(b"broken")
    ImageFiles(tmp_path, resize_size=24)(clip, [0, 2, 5])
    with pytest.raises(UserError, match=r"frame03\.jpg is no image"):
        ImageFiles(tmp_path, resize_size=24)(clip, [0, 3])


def test_scaled_decoding_never_falls_below_the_working_size(tmp_path: Path) -> None:
    """Where half the frame is too small, scaled decoding is full decoding."""
    write_clip(tmp_path / "clip", seed=0, size=(46, 60))
    clip = Clip("clip", (0, 5), 0, "")
    for size, same in ((24, True), (23, False)):
        full = read_in_full(tmp_path, clip, [0, 5], size)
        scaled = ImageFiles(tmp_path, size)(clip, [0, 5])
        assert scaled.shape == full.shape
        assert torch.equal(scaled, full) is same


def test_scaled_decoding_leaves_png_frames_alone(tmp_path: Path) -> None:
    """OpenCV would decode a PNG in full and shrink it without antialiasing."""
    write_clip(tmp_path / "clip", seed=0, size=(96, 96))
    for path in sorted((tmp_path / "clip").iterdir()):
        cv2.imwrite(str(path.with_suffix(".png")), cv2.imread(str(path)))
        path.unlink()
    clip = Clip("clip", (0, 5), 0, "")
    full = read_in_full(tmp_path, clip, [0], 24)
    assert torch.equal(ImageFiles(tmp_path, 24)(clip, [0]), full)


@needs_real_data
def test_scaled_decoding_would_move_evaluation_so_only_training_uses_it() -> None:
    """The reason for decoding in full wherever a score or an export is compared.

    The pixels stay near (about one gray level on average, thirty at sharp edges), but not as near
    as the 1e-4 in probability that export and evaluation must agree to.
    """
    folders = sorted(IMAGES.iterdir())[:3]
    clips = [Clip(folder.name, (0, 39), 0, "") for folder in folders]
    offsets = list(range(0, 40, 10))
    full = torch.stack([read_in_full(IMAGES, clip, offsets, 128) for clip in clips])
    scaled = torch.stack([ImageFiles(IMAGES, 128)(clip, offsets) for clip in clips])
    difference = (full.float() - scaled.float()).abs()
    assert 0 < difference.mean() < 2  # gray levels of 255
    torch.manual_seed(0)
    model = build_model("r2plus1d_18", 10)
    inputs = [
        model_input(model, images.transpose(1, 2)[..., 40:88, 40:88]) for images in (full, scaled)
    ]
    with torch.inference_mode():
        # Statistics of these clips, without which untrained weights see hardly anything.
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm3d)):
            norm.momentum = 1.0
        model(inputs[0])
        full_probabilities, scaled_probabilities = (model.eval()(x).softmax(1) for x in inputs)
    assert (full_probabilities - scaled_probabilities).abs().max() > 1e-3


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_bad_frame_names_itself(tmp_path: Path, clip: Clip, content: bytes | None) -> None:
    path = tmp_path / "clip" / "frame02.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UserError, match=r"data_path: .*frame02\.jpg is no image") as caught:
        read_frames(tmp_path / "clip", [0, 2])
    assert "\n" not in str(caught.value)


def test_a_vanished_clip_and_missing_frames_name_the_folder(tmp_path: Path, clip: Clip) -> None:
    with pytest.raises(UserError, match="clip has 6 frames, the annotations need 9"):
        read_frames(tmp_path / "clip", [8])
    shutil.rmtree(tmp_path / "clip")
    with pytest.raises(UserError, match="clip has 0 frames"):
        ImageFiles(tmp_path, 24)(clip, [0])


def test_frames_of_several_sizes_are_refused(tmp_path: Path, clip: Clip) -> None:
    cv2.imwrite(str(tmp_path / "clip" / "frame04.jpg"), np.zeros((10, 48, 3), np.uint8))
    with pytest.raises(UserError, match=r"frame04\.jpg is 48x10, other frames .* are 48x40"):
        ImageFiles(tmp_path, 8)(clip, [0, 4])
