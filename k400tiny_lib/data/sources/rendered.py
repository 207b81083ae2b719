"""A rendered sample data set in the layout of K400-Tiny, to try the whole pipeline without data.

Every clip shows one object over a textured background. The classes come in pairs that differ only
in the direction of time: a clip played backwards belongs to the partner class, so a frame by itself
does not tell the two apart and a model has to look at motion.
"""

import hashlib
import math
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from csv import writer as csv_writer
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from k400tiny_lib.files import atomic_write
from k400tiny_lib.system import available_cores

IMAGES_FOLDER = "k400tiny_images"
GROUND_TRUTH_FILE = "k400tiny_ground_truth.csv"

# label -> (what moves, direction of time). Both labels of a pair draw from the same distributions.
CLASSES: dict[str, tuple[str, int]] = {
    "growing": ("scale", 1),
    "shrinking": ("scale", -1),
    "turning clockwise": ("angle", 1),
    "turning counterclockwise": ("angle", -1),
    "moving right": ("x", 1),
    "moving left": ("x", -1),
    "moving down": ("y", 1),
    "moving up": ("y", -1),
}

# Outlines in [-1, 1], y down, none with a rotational symmetry: a turn keeps its direction as long
# as it stays below 180 degrees between two frames that the model sees.
_SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    # arrow
    ((-0.25, 1.0), (-0.25, 0.0), (-0.75, 0.0), (0.0, -1.0), (0.75, 0.0), (0.25, 0.0), (0.25, 1.0)),
    # L
    ((-0.6, -1.0), (0.0, -1.0), (0.0, 0.4), (0.8, 0.4), (0.8, 1.0), (-0.6, 1.0)),
    # dart
    ((0.0, -1.0), (0.7, 0.9), (0.0, 0.5), (-0.7, 0.9)),
    # flag
    ((-0.5, -1.0), (0.8, -0.6), (-0.1, -0.1), (-0.1, 1.0), (-0.5, 1.0)),
    # sickle
    ((-0.9, 0.7), (-0.7, -0.5), (0.1, -0.9), (0.9, -0.5), (0.0, -0.2), (-0.2, 0.9)),
    # pointing hand
    ((-0.9, -0.3), (0.3, -0.9), (0.9, 0.0), (0.3, 0.9), (0.3, 0.3), (-0.9, 0.3)),
)

_SPRITE = 224  # side of the picture of the object, in pixels
_SPRITE_REACH = 1.25  # it covers [-reach, reach] of the outline's coordinates: room for the halo
_JPEG_QUALITY = 80

_Rng = np.random.Generator
_Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Clip:
    """One clip to render: where it goes, what happens in it, and the numbers that seed it."""

    folder_name: str
    youtube_id: str
    label: str
    source_seed: tuple[int, int, int]  # (seed, class, source)
    clip: int


@dataclass(frozen=True)
class _Pose:
    """Where the object is in one frame: centre and radius in frame widths, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


def render_sample(
    root: Path,
    *,
    seed: int,
    num_sources_per_class: int = 36,
    clips_per_source: int = 2,
    num_frames: int = 40,
    size: int = 336,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Render the sample data set: one folder of JPEG frames per clip, then the ground truth.

    The same arguments give the same bytes, whatever `workers` is. A clip folder that exists already
    is left as it is, so an interrupted rendering resumes; the CSV comes last.

    Args:
        root: folder that receives `k400tiny_images/` and `k400tiny_ground_truth.csv`.
        seed: seed of the whole set, at least 0.
        num_sources_per_class: "videos" per class, each with its own background and object.
        clips_per_source: clips cut from one source, differing in position, speed and phase.
        num_frames: frames per clip, 2 to 100 (their names have two digits).
        size: height and width of a frame in pixels, at least 32.
        workers: processes; None takes one per core, 1 renders in this process.
        progress: called as `progress(clips done, clips in all)` after every clip.

    Raises:
        ValueError: if a number is out of its range.
        OSError: if a file cannot be written.
    """
    for name, value, lowest, highest in (
        ("seed", seed, 0, None),
        ("num_sources_per_class", num_sources_per_class, 1, None),
        ("clips_per_source", clips_per_source, 1, None),
        ("num_frames", num_frames, 2, 100),
        ("size", size, 32, None),
        ("workers", 1 if workers is None else workers, 1, None),
    ):
        if value < lowest or (highest is not None and value > highest):
            needed = f"at least {lowest}" if highest is None else f"{lowest} to {highest}"
            raise ValueError(f"{name}: found {value}. Needed: {needed}.")

    images = root / IMAGES_FOLDER
    images.mkdir(parents=True, exist_ok=True)
    clips = _plan(seed, num_sources_per_class, clips_per_source)
    render = partial(_render_clip, images, num_frames=num_frames, size=size)
    workers = min(workers or available_cores(), len(clips))
    if workers == 1:
        for done, clip in enumerate(clips, start=1):
            render(clip)
            if progress is not None:
                progress(done, len(clips))
    else:
        # spawn: a fork would copy the locks of threads that torch or MLflow have started.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
            try:
                for done, _ in enumerate(pool.map(render, clips), start=1):
                    if progress is not None:
                        progress(done, len(clips))
            except BaseException:
                # Leaving the block waits for the queue: Ctrl-C would render the rest first.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    _write_ground_truth(root / GROUND_TRUTH_FILE, clips)


def _plan(seed: int, num_sources_per_class: int, clips_per_source: int) -> list[_Clip]:
    """List the clips, all classes of one source number side by side."""
    clips = []
    for source in range(num_sources_per_class):
        for class_id, label in enumerate(CLASSES):
            digest = hashlib.blake2s(f"{seed}/{label}/{source}".encode(), digest_size=4).hexdigest()
            youtube_id = f"smp{digest}"  # 11 characters, like a real one
            for clip in range(clips_per_source):
                folder_name = f"{youtube_id}_{10 * clip:06d}_{10 * clip + 10:06d}"
                clips.append(_Clip(folder_name, youtube_id, label, (seed, class_id, source), clip))
    return clips


def _write_ground_truth(path: Path, clips: list[_Clip]) -> None:
    with atomic_write(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        rows = csv_writer(file, lineterminator="\n")
        rows.writerow(("folder_name", "youtube_id", "label"))
        rows.writerows((clip.folder_name, clip.youtube_id, clip.label) for clip in clips)


def _render_clip(images: Path, clip: _Clip, *, num_frames: int, size: int) -> None:
    """Write the frames of one clip to `images/<folder_name>/`, unless that folder exists."""
    target = images / clip.folder_name
    if target.exists():
        return
    # The folder gets its name when it is complete; what a killed rendering left is started over.
    partial_folder = images / f".{clip.folder_name}.part"
    shutil.rmtree(partial_folder, ignore_errors=True)
    partial_folder.mkdir()

    look_rng = np.random.default_rng(np.random.SeedSequence(clip.source_seed))
    background = _background(size, look_rng)
    sprite = _sprite(background, look_rng)
    rng = np.random.default_rng(np.random.SeedSequence([*clip.source_seed, clip.clip]))
    poses = _poses(clip.label, num_frames, rng)
    grain = rng.normal(0.0, 1.0, (size + 32, size + 32, 1)).astype(np.float32)
    for index, pose in enumerate(poses):
        top, left = rng.integers(0, 32, 2)
        frame = _paint(background, sprite, pose) + grain[top : top + size, left : left + size]
        pixels = np.clip(frame, 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        (partial_folder / f"frame{index:02d}.jpg").write_bytes(jpeg.tobytes())
    partial_folder.rename(target)


def _poses(label: str, num_frames: int, rng: _Rng) -> list[_Pose]:
    """Place the object in every frame.

    The motion is symmetric about the middle of the clip, so the partner class, which differs in the
    sign alone, has the same clips in reverse order.
    """
    moves, direction = CLASSES[label]
    x, y = rng.uniform(0.42, 0.58, 2)
    radius = rng.uniform(0.23, 0.31)
    angle = rng.uniform(0.0, 2 * math.pi)
    span = rng.uniform(0.85, 1.15)  # how fast
    # It turns like the hand of a clock, about a point near its end: a turn about its own middle
    # moves hardly a pixel in the small pictures that a CPU can train on.
    arm = 0.2 if moves == "angle" else 0.0
    poses = []
    for progress in direction * np.linspace(-0.5, 0.5, num_frames):
        moved = float(span * progress)
        turned = angle + math.radians(320) * moved * (moves == "angle")
        poses.append(
            _Pose(
                x=x + 0.55 * moved * (moves == "x") + arm * math.sin(turned),
                y=y + 0.55 * moved * (moves == "y") - arm * math.cos(turned),
                radius=radius * (2.6**moved if moves == "scale" else 1.0),
                angle=turned,
            )
        )
    return poses


def _paint(background: _Floats, sprite: _Floats, pose: _Pose) -> _Floats:
    """Lay the object over the background.

    Args:
        background: (S, S, 3), 0 to 255.
        sprite: (P, P, 4), colour times opacity in 0 to 255, then opacity in 0 to 1.
        pose: where the object goes.

    Returns:
        float32 (S, S, 3), 0 to 255.
    """
    size = background.shape[0]
    scale = 2 * _SPRITE_REACH * pose.radius * size / sprite.shape[0]
    cos, sin = scale * math.cos(pose.angle), scale * math.sin(pose.angle)
    middle = sprite.shape[0] / 2
    to_frame = np.array(
        [
            [cos, -sin, pose.x * size - (cos - sin) * middle],
            [sin, cos, pose.y * size - (sin + cos) * middle],
        ]
    )
    layer = cv2.warpAffine(sprite, to_frame, (size, size), flags=cv2.INTER_LINEAR)
    return (background * (1.0 - layer[:, :, 3:]) + layer[:, :, :3]).astype(np.float32, copy=False)


def _sprite(background: _Floats, rng: _Rng) -> _Floats:
    """Draw an object that stands out from its background.

    Returns:
        float32 (P, P, 4): blue, green, red times opacity in 0 to 255, then opacity in 0 to 1.
    """
    average = background.mean((0, 1), keepdims=True).astype(np.uint8)
    hues = cv2.cvtColor(average, cv2.COLOR_BGR2HSV)
    hue = int(hues[0, 0, 0]) + 90 + int(rng.integers(-35, 36))  # about the complementary colour
    light = int(hues[0, 0, 2]) < 128  # a light object on a dark background, or the reverse
    fill = _bgr(hue, int(rng.integers(120, 220)), 240 if light else 110)
    rim = (250, 250, 250) if light else (25, 25, 25)
    outline = np.array(_SHAPES[rng.integers(len(_SHAPES))]) * rng.uniform(0.85, 1.0, 2)
    shift = 4  # OpenCV draws at sixteenths of a pixel
    points = np.round((outline / _SPRITE_REACH + 1) / 2 * _SPRITE * 2**shift).astype(np.int32)[None]

    opacity = cv2.fillPoly(np.zeros((_SPRITE, _SPRITE), np.uint8), points, 255, cv2.LINE_AA, shift)
    colour = np.full((_SPRITE, _SPRITE, 3), fill, np.uint8)
    stripe = _SPRITE // 2 + int(rng.integers(-30, 31))
    cv2.line(colour, (0, stripe), (_SPRITE, stripe), _bgr(hue + 20, 200, 200), 14, cv2.LINE_AA)
    cv2.polylines(colour, points, True, rim, 7, cv2.LINE_AA, shift)

    # A soft dark halo, the same in every direction, keeps the edge visible on a busy background.
    halo = cv2.GaussianBlur(opacity, (0, 0), 7.0).astype(np.float32)[:, :, None] / 255 * 0.5
    solid = opacity.astype(np.float32)[:, :, None] / 255
    return np.concatenate((colour * solid, np.maximum(halo, solid)), axis=2).astype(np.float32)


def _background(size: int, rng: _Rng) -> _Floats:
    """Colour clouds, marble, ripples or weave with three related colours.

    Returns:
        float32 (S, S, 3): blue, green, red, 0 to 255.
    """
    clouds = _smooth_noise(size, 4, rng) + 0.3 * _smooth_noise(size, 12, rng)
    across, down = np.meshgrid(*[np.linspace(0, 1, size, dtype=np.float32)] * 2)
    theta = rng.uniform(0, math.pi)
    ramp = math.cos(theta) * across + math.sin(theta) * down
    waves = rng.uniform(4, 9) * 2 * math.pi
    pattern = [
        clouds,
        np.sin(waves / 8 * clouds),
        np.sin(waves * ramp + 2 * clouds),
        np.sin(waves * across + clouds) * np.sin(waves * down + clouds),
    ][rng.integers(4)]
    shade: _Floats = 0.5 + 0.3 * pattern + 0.03 * _smooth_noise(size, 40, rng)
    hue = int(rng.integers(180))
    saturation, value = int(rng.integers(40, 150)), int(rng.choice([70, 190]))
    dark = np.array(_bgr(hue, saturation, value - 35), np.float32)
    bright = np.array(_bgr(hue + int(rng.integers(-15, 16)), saturation, value + 35), np.float32)
    colours: _Floats = dark + (bright - dark) * shade.clip(0, 1)[:, :, None]
    return colours


def _smooth_noise(size: int, cells: int, rng: _Rng) -> _Floats:
    """Random hills, about `cells` across: float32 (S, S), mean about 0, deviation about 1."""
    grid = rng.normal(0.0, 1.0, (cells, cells)).astype(np.float32)
    hills = cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return hills.astype(np.float32, copy=False)


def _bgr(hue: int, saturation: int, value: int) -> tuple[int, int, int]:
    """Convert OpenCV's HSV (hue modulo 180, the others 0 to 255) to blue, green, red."""
    pixel = np.array([[[hue % 180, saturation, value]]], np.uint8)
    blue, green, red = cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].tolist()
    return blue, green, red
