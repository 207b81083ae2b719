"""What happens when in a long video: labels of its windows, and of the parts between them."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from k400tiny_lib.media.picture import SIDE, Image
from k400tiny_lib.media.windows.reading import Window, WindowReader
from k400tiny_lib.media.windows.timing import Timing
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier
from k400tiny_lib.serving.predict import clips_a_batch, model_failure

Probabilities = npt.NDArray[np.float32]
T = TypeVar("T")


class Windows(NamedTuple):
    """How a long video is cut: seconds of a window, and from one start to the next."""

    seconds: float
    stride: float


class Span(NamedTuple):
    """A part of a video with one label.

    Attributes:
        start, end: seconds after the first frame.
        label: the likeliest.
        probability: of the label, the mean over the windows.
        known: whether it reaches the model's confidence threshold.
    """

    start: float
    end: float
    label: str
    probability: float
    known: bool


class Timeline(NamedTuple):
    """The labels of a video.

    Attributes:
        spans: one after the other, from 0 to the end of the video.
        probabilities: float32 (K,), the mean over all windows.
        timing: of the video's frames.
    """

    spans: list[Span]
    probabilities: Probabilities
    timing: Timing


def label_windows(
    model: OnnxClassifier,
    video: Path,
    windows: Windows,
    batch_size: int,
    max_bad_frames: float,
    on_span: Callable[[Span], None],
) -> Timeline:
    """Label a video window by window, while a thread decodes the next ones.

    Where windows overlap, a moment has the label of the one whose middle is nearest. Neighbors with
    the same label make one span.

    Args:
        model: the exported model.
        video: the file.
        windows: their length and stride.
        batch_size: windows per call of the model.
        max_bad_frames: share of the video's frames that may be damaged.
        on_span: gets each span when it is complete.

    Raises:
        UserError: if the video cannot be read; perhaps after some spans.
    """
    reader = WindowReader(
        video, *windows, model.clip_len, model.views, max_bad_frames=max_bad_frames
    )
    spans: list[Span] = []
    total, count = np.zeros(len(model.class_names)), 0

    def labeled() -> Iterator[tuple[Window, Probabilities]]:
        nonlocal total, count
        size = clips_a_batch(batch_size, model.num_frames * SIDE * SIDE * 3)
        for batch in _ahead(_batched(reader, size)):
            values = _predict(model, video, [window.frames for window in batch])
            total, count = total + values.sum(0, dtype=np.float64), count + len(batch)
            yield from zip(batch, values, strict=True)

    for span in merge_windows(labeled(), model):
        spans.append(span)
        on_span(span)
    return Timeline(spans, (total / count).astype(np.float32), reader.timing)


def merge_windows(
    labeled: Iterable[tuple[Window, Probabilities]], model: OnnxClassifier
) -> Iterator[Span]:
    """The spans of windows in order of time, each as soon as the next one begins.

    Args:
        labeled: windows with their probabilities (K,).
        model: for its labels and its confidence threshold.
    """
    label, known, values = "", False, list[float]()
    start = middle = end = 0.0
    for window, probabilities in labeled:
        [(likeliest, probability)] = model.best(probabilities, 1)
        is_known = model.is_known(probabilities)
        if values and (likeliest, is_known) != (label, known):
            boundary = (middle + (window.start + window.end) / 2) / 2
            yield Span(start, boundary, label, float(np.mean(values)), known)
            start, values = boundary, []
        label, known, end = likeliest, is_known, window.end
        middle = (window.start + window.end) / 2
        values.append(probability)
    if values:
        yield Span(start, end, label, float(np.mean(values)), known)


def _predict(model: OnnxClassifier, video: Path, clips: list[Image]) -> Probabilities:
    """Probabilities of clips, float32 (N, K); one by one if the model fails on them together.

    Raises:
        UserError: if it fails on one.
    """
    try:
        return model.predict(np.stack(clips))
    except Exception as error:  # ONNX Runtime has a class for each status
        if len(clips) == 1:
            raise model_failure(video, clips[0], error) from None
    return np.concatenate([_predict(model, video, [clip]) for clip in clips])


def _batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, while a thread makes the next one."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
