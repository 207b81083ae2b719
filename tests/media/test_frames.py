"""Image files: against Pillow."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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
