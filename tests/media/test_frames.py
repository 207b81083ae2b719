"""Image files: against Pillow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from k400tiny_lib.data.preparation.validation import check_frame
from k400tiny_lib.media.frames import decode_frame


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
def test_frames_are_rgb_as_pillow_decodes_them(tmp_path: Path, suffix: str) -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[..., 0] = 200  # red
    Image.fromarray(image).save(tmp_path / f"frame0{suffix}")
    decoded = decode_frame(tmp_path / f"frame0{suffix}")
    expected = np.asarray(Image.open(tmp_path / f"frame0{suffix}"))
    # Decoders may round the color conversion differently, by a level.
    assert np.abs(decoded.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_orientation_is_applied_by_every_step(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:24, :32], image[:24, 32:], image[24:, :32] = 255, [255, 0, 0], [0, 255, 0]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"frame0{suffix}"
    Image.fromarray(image).save(path, exif=exif, quality=95)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    decoded = decode_frame(path)
    assert np.abs(decoded.astype(int) - expected).max() <= 1
    assert check_frame(path.read_bytes()) == (expected.shape[:2], "")
    half = decode_frame(path, 2)
    # Reduced decoding averages; the corners are far from the edges between the colors.
    assert np.abs(half[::23, ::23].astype(int)[:2, :2] - decoded[::47, ::47][:2, :2]).max() <= 2


MODES = {
    "CMYK": ".jpg",
    "L": ".jpg",
    "RGBA": ".png",
    "LA": ".png",
    "P": ".png",
    "1": ".png",
    "I;16": ".png",
}


@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_pixels_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / f"frame0{MODES[mode]}"
    gray = np.arange(0, 240, 5, dtype=np.uint8).reshape(1, 48).repeat(40, 0)
    if mode == "I;16":
        Image.fromarray(gray.astype(np.uint16) * 256).save(path)
        expected = gray[..., None].repeat(3, 2)
    else:
        Image.fromarray(gray).convert("RGB").convert(mode).save(path, quality=95)
        expected = np.asarray(Image.open(path).convert("RGB"))
    assert np.abs(decode_frame(path).astype(int) - expected).max() <= 1
    assert check_frame(path.read_bytes()) == ((40, 48), "")
    assert decode_frame(path, 2).shape == (20, 24, 3)
