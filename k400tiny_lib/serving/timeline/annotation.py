"""A copy of a video with the labels of its timeline drawn in, without sound."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from av.codec.codec import UnknownCodecError
from matplotlib.backends.backend_agg import FigureCanvasAgg

from k400tiny_lib.files import atomic_write
from k400tiny_lib.media.picture import Image, orientation, sane_aspect
from k400tiny_lib.media.windows.timing import Decoder, Timing
from k400tiny_lib.plots import LabeledFigure, short_text
from k400tiny_lib.serving.timeline.spans import Span
from k400tiny_lib.system import available_cores

_LONGEST, _SHORTEST = 1280, 240  # pixels of a side; smaller videos are enlarged for their text
_TICK = Fraction(1, 60_000)  # all usual frame rates; MPEG-4 allows no finer one
_BT709 = 1  # FFmpeg's number
_STRIP = 0.1  # height of the text's strip, a share of the picture's
_LEAST_STRIP = 26  # pixels
_DPI = 100
_BEST_CODEC = "libx264"


def annotate(video: Path, timing: Timing, spans: Sequence[Span], target: Path) -> None:
    """Write the copy, an .mp4; frames have their times, and are upright.

    Args:
        video: the file.
        timing: of its frames.
        spans: its timeline, at least one.
        target: the file to write.

    Raises:
        UserError: if the video cannot be read.
        OSError: if the copy cannot be written.
    """
    upright: Callable[[Any], Image] | None = None
    starts = [span.start for span in spans]
    shown, strip, last = -1, np.zeros((0, 0, 4), np.uint8), -1
    with atomic_write(target) as partial, av.open(str(partial), "w", format="mp4") as copy:
        for number, frame, pixel_aspect in Decoder(video, timing.index, timing.num_threads):
            if upright is None:
                upright = _Upright(frame, pixel_aspect)
                stream = _add_stream(copy, upright.size, timing)
            picture = upright(frame)
            seconds = timing.seconds(number)
            if (current := max(0, bisect_right(starts, seconds) - 1)) != shown:
                shown, strip = current, draw_strip(spans[current], picture.shape[1::-1])
            last = max(last + 1, round(seconds / _TICK))
            _blend(picture, strip)
            encoded = av.VideoFrame.from_ndarray(picture, "rgb24")
            encoded = encoded.reformat(format="yuv420p", dst_colorspace=_BT709)
            encoded.pts, encoded.time_base = last, _TICK
            copy.mux(stream.encode(encoded))
        if upright is not None:
            copy.mux(stream.encode(None))


def draw_strip(span: Span, size: tuple[int, int]) -> Image:
    """The text of a span, white on dark, as wide as the picture.

    Args:
        span: with the label.
        size: width and height of the picture in pixels.

    Returns:
        uint8 (h, width, 4), RGBA.
    """
    width, height = size
    rows = max(_LEAST_STRIP, round(height * _STRIP))
    tail = f"  {span.probability:.2f}" + ("" if span.known else "  (unknown)")
    points = 0.5 * rows * 72 / _DPI
    # A letter is about 0.6 of the font's size wide; what is still too wide gets a smaller font.
    columns = round(1.3 * width * 72 / _DPI / (0.6 * points)) - len(tail)
    figure = LabeledFigure(figsize=(width / _DPI, rows / _DPI), dpi=_DPI, facecolor="#000000a8")
    margin = 0.4 * rows
    text = figure.text(
        margin / width,
        0.5,
        short_text(span.label, max(8, columns)) + tail,
        color="white" if span.known else "0.75",
        fontsize=points,
        verticalalignment="center_baseline",
    )
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    if (drawn := text.get_window_extent().width) > (free := width - 2 * margin):
        text.set_fontsize(points * free / drawn)
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:rows, :width]


def _blend(picture: Image, strip: Image) -> None:
    """Draw a strip over the lowest rows of a picture, in place."""
    rows = picture[-strip.shape[0] :, : strip.shape[1]]
    alpha = strip[: rows.shape[0], :, 3:].astype(np.float32) / 255
    rows[:] = rows * (1 - alpha) + strip[: rows.shape[0], :, :3] * alpha


class _Upright:
    """Brings all frames of a stream to one size: upright, with square pixels, even sides.

    Attributes:
        size: width and height of the result in pixels.
    """

    def __init__(self, first: Any, pixel_aspect: Fraction | None) -> None:
        self._turn = orientation(first)
        width, height = first.width * sane_aspect(pixel_aspect), Fraction(first.height)
        if self._turn.quarters % 2:
            width, height = height, width
        scale = min(1, _LONGEST / max(width, height))
        scale = max(scale, min(_SHORTEST / min(width, height), _LONGEST / max(width, height)))
        even = [max(16, 2 * round(scale * side / 2)) for side in (width, height)]
        self.size = (even[0], even[1])

    def __call__(self, frame: Any) -> Image:
        image = frame.to_ndarray(format="rgb24")
        if self._turn.mirrored:
            image = np.fliplr(image)
        image = np.ascontiguousarray(np.rot90(image, self._turn.quarters))
        is_smaller = image.shape[1] > self.size[0]
        way = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size, interpolation=way)
        return np.asarray(image, np.uint8)


def _add_stream(copy: Any, size: tuple[int, int], timing: Timing) -> Any:
    try:
        codec = av.codec.Codec(_BEST_CODEC, "w").name
    except UnknownCodecError:  # an FFmpeg without it
        codec = "mpeg4"
    rate = (1 / (timing.index.step * timing.index.tick)).limit_denominator(1001)
    stream = copy.add_stream(codec, rate=max(Fraction(1), min(rate, Fraction(240))))
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base = _TICK
    context.colorspace = _BT709
    context.thread_count = available_cores()
    if codec == _BEST_CODEC:
        context.options = {"preset": "veryfast", "crf": "23"}
    else:
        context.options = {"q": "4"}
        context.qmin, context.qmax = 2, 6
    return stream
