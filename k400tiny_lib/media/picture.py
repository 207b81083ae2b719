"""One frame of a video as the square picture that models are trained on.

PyAV does the work: colors and size change in one step from the decoder's planes, so that a 4K frame
never exists as RGB. Without PyTorch, like everything in this directory.
"""

import struct
from fractions import Fraction
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import Interpolation, VideoReformatter

Image = npt.NDArray[np.uint8]

SIDE = 336  # of the square; the short side of K400-Tiny's frames
# A triangle filter as wide as the scale, which is torchvision's antialiased bilinear resize.
# Without the other two, FFmpeg rounds colors down and gives two neighbors the same.
_SCALING = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
# Formats with two rows and columns of luma to one of color -> the same with one.
_HALF_COLORS = {"yuv420p": "yuv444p", "yuvj420p": "yuvj444p"}
_side_data: Any = SideDataContainer  # PyAV declares no arguments
_WIDEST = 4  # long side / short side; beyond it the middle is cut out before scaling
_ODDEST = 16  # pixels more than so many times as wide as high, or the reverse, are a mistake


class Orientation(NamedTuple):
    """How a player turns the decoded frames: first mirrored left to right, then turned."""

    mirrored: bool = False
    quarters: int = 0  # counterclockwise


def orientation(frame: Any) -> Orientation:
    """The orientation that a frame's display matrix asks for, rounded to quarter turns.

    The matrix is that of the container, or of the stream where only that has one (H.264 SEI).
    """
    # `frame.side_data` would keep the frame, 12 MB of a 4K one, until the garbage collector runs.
    data = _side_data(frame).get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    # A point (x, y), y downwards, is shown at (a x + c y, b x + d y).
    a, b, _, c, d = struct.unpack_from("=5i", bytes(data))
    if a * d == b * c:  # turns the picture into a line: all zeros, in practice
        return Orientation()
    sign = 1 if a * d > b * c else -1
    clockwise = np.degrees(np.arctan2(sign * b, sign * a))
    return Orientation(sign < 0, round(-clockwise / 90) % 4)


def sane_aspect(pixel_aspect: Fraction | None) -> Fraction:
    """Width of a pixel over its height; 1 for None, 0 and extreme ones, which are mistakes."""
    sane = pixel_aspect and Fraction(1, _ODDEST) <= pixel_aspect <= _ODDEST
    return pixel_aspect if sane and pixel_aspect else Fraction(1)


class Squarer:
    """Brings the frames of one stream to the same square.

    Args:
        side: of the square, in pixels.
        pixel_aspect: width of a pixel over its height; None, 0 and extreme ones mean square.
        turn: orientation of all frames.
    """

    def __init__(self, side: int, pixel_aspect: Fraction | None, turn: Orientation) -> None:
        self._side = side
        self._pixel_aspect = sane_aspect(pixel_aspect)
        self._turn = turn
        # Each keeps the filters of the last size.
        self._shrinker, self._reformatter = VideoReformatter(), VideoReformatter()

    def __call__(self, frame: Any) -> Image:
        """uint8 (side, side, 3), RGB: the upright center of a decoded frame."""
        frame = self._as_rgb_middle(frame)
        width, height = frame.width * self._pixel_aspect, Fraction(frame.height)
        short = min(width, height)
        # Rounded as torchvision's resize and center_crop do. Cutting before scaling is no faster.
        columns, rows = (int(self._side * length / short) for length in (width, height))
        if short >= 2 * self._side and (planes := _HALF_COLORS.get(frame.format.name)):
            if short >= 3 * self._side:
                frame = _halved(frame)
            # A third faster than scaling into RGB.
            frame = self._shrinker.reformat(
                frame, columns, rows, planes, interpolation=Interpolation.BILINEAR, threads=1
            )
        # What needs no scaling becomes RGB as PyAV does it by itself.
        is_scaled = (columns, rows) != (frame.width, frame.height)
        scaled = self._reformatter.reformat(
            frame, columns, rows, "rgb24", interpolation=_SCALING if is_scaled else None, threads=1
        )
        image: npt.NDArray[Any] = scaled.to_ndarray()
        if self._turn.mirrored:
            image = np.fliplr(image)
        image = np.rot90(image, self._turn.quarters)
        top, left = (round((length - self._side) / 2) for length in image.shape[:2])
        square: Image = image[top : top + self._side, left : left + self._side]
        return square

    def _as_rgb_middle(self, frame: Any) -> Any:
        """Make RGB, before they are scaled, of frames that FFmpeg would not scale as pictures.

        That is the middle of a very long one, which scaling would make enormous; and one that is
        marked as interlaced, of which FFmpeg scales the odd and the even rows by themselves.
        """
        width, height = frame.width * self._pixel_aspect, frame.height
        is_long = max(width, height) > _WIDEST * min(width, height)
        if not (is_long or frame.interlaced_frame):
            return frame
        rgb = self._reformatter.reformat(
            frame, format="rgb24", interpolation=_SCALING, threads=1
        ).to_ndarray()
        columns = min(frame.width, max(1, round(_WIDEST * height / self._pixel_aspect)))
        rows = min(height, max(1, round(_WIDEST * width)))
        # Cut as much on both sides.
        left, top = (frame.width - columns) // 2, (height - rows) // 2
        middle: Image = np.ascontiguousarray(rgb[top : height - top, left : frame.width - left])
        return av.VideoFrame.from_ndarray(middle, format="rgb24")


def _halved(frame: Any) -> Any:
    """A frame of half the size: the mean of four pixels each, ten times faster than by FFmpeg."""
    half = av.VideoFrame(frame.width // 2, frame.height // 2, frame.format.name)
    for plane, target in zip(frame.planes, half.planes, strict=True):
        size = (target.width, target.height)
        cv2.resize(_pixels(plane), size, dst=_pixels(target), interpolation=cv2.INTER_AREA)
    half.colorspace, half.color_range = frame.colorspace, frame.color_range
    return half


def _pixels(plane: Any) -> Image:
    """The content of a plane, without the padding of its rows; not a copy."""
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width]
