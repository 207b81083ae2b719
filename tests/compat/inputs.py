"""Small inputs that are the same bytes on every machine: clips, and a data set of them.

Only NumPy and OpenCV, so that the code of 71b16d0 and today's code can both be given them.
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

LABELS = ("sliding", "growing", "turning")
NUM_FRAMES, HEIGHT, WIDTH = 6, 40, 48


def noise(
    seed: int, num_frames: int = NUM_FRAMES, height: int = HEIGHT, width: int = WIDTH
) -> npt.NDArray[np.uint8]:
    """uint8 (num_frames, height, width, 3): noise in blocks of 8 x 8 pixels, sides multiples of 8.

    RandomState because NumPy has frozen its stream; that of default_rng may change.
    """
    shape = (num_frames, height // 8, width // 8, 3)
    coarse = np.random.RandomState(seed).randint(0, 256, shape, dtype=np.uint8)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def write_data(root: Path, clips_per_class: int = 6) -> list[tuple[str, int]]:
    """Frame folders below `root`, as PNG, which decodes to the same pixels everywhere.

    Returns:
        Name and class id of each clip; the ids follow LABELS.
    """
    clips = []
    for number in range(clips_per_class * len(LABELS)):
        target = number % len(LABELS)
        name = f"v{target}{number:02d}"
        (root / name).mkdir(parents=True)
        for index, image in enumerate(noise(number)):
            cv2.imwrite(str(root / name / f"frame{index:02d}.png"), image)
        clips.append((name, target))
    return clips
