"""The pictures of the rendered sample: one object that moves over a textured background."""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

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
    ((-0.6, -1.0), (0.0, -1.0), (0.0, 0.4), (0.8, 0.4), (0.8, 1.0), (-0.6, 1.0)),  # L
    ((0.0, -1.0), (0.7, 0.9), (0.0, 0.5), (-0.7, 0.9)),  # dart
    ((-0.5, -1.0), (0.8, -0.6), (-0.1, -0.1), (-0.1, 1.0), (-0.5, 1.0)),  # flag
    ((-0.9, 0.7), (-0.7, -0.5), (0.1, -0.9), (0.9, -0.5), (0.0, -0.2), (-0.2, 0.9)),  # sickle
    ((-0.9, -0.3), (0.3, -0.9), (0.9, 0.0), (0.3, 0.9), (0.3, 0.3), (-0.9, 0.3)),  # pointing hand
)

_SPRITE = 224  # side of the picture of the object, in pixels
_SPRITE_REACH = 1.25  # it covers [-reach, reach] of the outline's coordinates: room for the halo
_JPEG_QUALITY = 80

_Rng = np.random.Generator
_Floats = npt.NDArray[np.float32]


class _Pose(NamedTuple):
    """Where the object is in one frame: center and radius in frame widths, angle in radians."""

    x: float
    y: float
    radius: float
    angle: float


def draw_frames(
    label: str, source_seed: Sequence[int], clip: int, *, num_frames: int, size: int
) -> Iterator[bytes]:
    """Draw the frames of one clip.

    Args:
        label: one of `CLASSES`.
        source_seed: seeds background and object, which the clips of a source share.
        clip: number of the clip within its source; seeds the motion, together with the source.
        num_frames: frames of the clip.
        size: height and width of a frame in pixels.

    Yields:
        One JPEG file per frame, in order of time.
    """
    look_rng = np.random.default_rng(np.random.SeedSequence(source_seed))
    background = _background(size, look_rng)
    sprite = _sprite(background, look_rng)
    rng = np.random.default_rng(np.random.SeedSequence([*source_seed, clip]))
    poses = _poses(label, num_frames, rng)
    grain = rng.normal(0.0, 1.0, (size + 32, size + 32, 1)).astype(np.float32)
    for pose in poses:
        top, left = rng.integers(0, 32, 2)
        frame = _paint(background, sprite, pose) + grain[top : top + size, left : left + size]
        pixels = np.clip(frame, 0, 255).astype(np.uint8)
        _, jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
        yield jpeg.tobytes()


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
        shift = 0.55 * moved
        frame_x = x + shift * (moves == "x") + arm * math.sin(turned)
        frame_y = y + shift * (moves == "y") - arm * math.cos(turned)
        scale = 2.6**moved if moves == "scale" else 1.0
        poses.append(_Pose(frame_x, frame_y, radius * scale, turned))
    return poses


def _paint(background: _Floats, sprite: _Floats, pose: _Pose) -> _Floats:
    """Lay the object over the background: float32 (S, S, 3), 0 to 255."""
    size = background.shape[0]
    scale = 2 * _SPRITE_REACH * pose.radius * size / sprite.shape[0]
    cos, sin = scale * math.cos(pose.angle), scale * math.sin(pose.angle)
    middle = sprite.shape[0] / 2
    left = pose.x * size - (cos - sin) * middle
    top = pose.y * size - (sin + cos) * middle
    to_frame = np.array([[cos, -sin, left], [sin, cos, top]])
    layer = cv2.warpAffine(sprite, to_frame, (size, size), flags=cv2.INTER_LINEAR)
    return (background * (1.0 - layer[:, :, 3:]) + layer[:, :, :3]).astype(np.float32, copy=False)


def _sprite(background: _Floats, rng: _Rng) -> _Floats:
    """Draw an object that stands out from its background.

    Returns:
        float32 (P, P, 4): blue, green, red times opacity in 0 to 255, then opacity in 0 to 1.
    """
    average = background.mean((0, 1), keepdims=True).astype(np.uint8)
    hues = cv2.cvtColor(average, cv2.COLOR_BGR2HSV)
    hue = int(hues[0, 0, 0]) + 90 + int(rng.integers(-35, 36))  # about the complementary color
    light = int(hues[0, 0, 2]) < 128  # a light object on a dark background, or the reverse
    fill = _bgr(hue, int(rng.integers(120, 220)), 240 if light else 110)
    rim = (250, 250, 250) if light else (25, 25, 25)
    outline = np.array(_SHAPES[rng.integers(len(_SHAPES))]) * rng.uniform(0.85, 1.0, 2)
    shift = 4  # OpenCV draws at sixteenths of a pixel
    points = np.round((outline / _SPRITE_REACH + 1) / 2 * _SPRITE * 2**shift).astype(np.int32)[None]

    opacity = cv2.fillPoly(np.zeros((_SPRITE, _SPRITE), np.uint8), points, 255, cv2.LINE_AA, shift)
    color = np.full((_SPRITE, _SPRITE, 3), fill, np.uint8)
    stripe = _SPRITE // 2 + int(rng.integers(-30, 31))
    cv2.line(color, (0, stripe), (_SPRITE, stripe), _bgr(hue + 20, 200, 200), 14, cv2.LINE_AA)
    cv2.polylines(color, points, True, rim, 7, cv2.LINE_AA, shift)

    # A soft dark halo, the same in every direction, keeps the edge visible on a busy background.
    halo = cv2.GaussianBlur(opacity, (0, 0), 7.0).astype(np.float32)[:, :, None] / 255 * 0.5
    solid = opacity.astype(np.float32)[:, :, None] / 255
    return np.concatenate((color * solid, np.maximum(halo, solid)), axis=2).astype(np.float32)


def _background(size: int, rng: _Rng) -> _Floats:
    """Color clouds, marble, ripples or weave with three related colors.

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
    colors: _Floats = dark + (bright - dark) * shade.clip(0, 1)[:, :, None]
    return colors


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
