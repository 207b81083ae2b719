"""Labels of clips (frame folders and videos), decoded while the model computes."""

import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from k400tiny_lib.errors import UserError, one_line, printable
from k400tiny_lib.serving.clips import Clip, Frames, read_clip, read_frames, reading_failure
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier

__all__ = ["Clip", "Labeled", "Labels", "label_each", "label_inputs", "read_clip", "read_frames"]

COLUMNS = ("input", "rank", "label", "probability", "known")

# The graph converts a clip to float32 several times over, so large clips get small batches.
_BATCH_BYTES = 64 << 20
_DECODED_AHEAD = 2  # clips, or one batch where that is more
_STATUS = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class Labeled(NamedTuple):
    """What became of an input.

    Attributes:
        path: of the input.
        probabilities: float32 (K,); None if it has no label.
        failure: why it has none, in one line.
        note: what of it is damaged or left out; empty for nothing.
    """

    path: Path
    probabilities: npt.NDArray[np.float32] | None
    failure: str = ""
    note: str = ""


class Labels(NamedTuple):
    """What `label_inputs` gives.

    Attributes:
        table: columns input, rank, label, probability, known.
        failures: a message per input without a label.
        notes: a message per input of which something is damaged or left out.
    """

    table: pd.DataFrame
    failures: list[str]
    notes: list[str]


def label_inputs(
    model: OnnxClassifier,
    inputs: Sequence[Path],
    batch_size: int,
    top_k: int,
    root: Path | None = None,
    max_bad_frames: float = 0.1,
) -> Labels:
    """Label every input that can be labeled, and collect the results in memory.

    Args:
        model: the exported model.
        inputs: from `find_inputs`.
        batch_size: clips per call of the model, at most; clips of one size share a call.
        top_k: labels per clip.
        root: directory of the inputs, to which the names in the table are relative; None for the
            last part of each path.
        max_bad_frames: share of a video's frames that may be damaged.
    """
    labels = Labels(pd.DataFrame(), [], [])
    rows = []
    for path, probabilities, failure, note in label_each(model, inputs, batch_size, max_bad_frames):
        if probabilities is None:
            labels.failures.append(failure)
            continue
        if note:
            labels.notes.append(note)
        rows += label_rows(model, name_of_input(path, root), probabilities, top_k)
    return labels._replace(table=pd.DataFrame(rows, columns=list(COLUMNS)))


def name_of_input(path: Path, root: Path | None) -> str:
    """What the tables call an input: its path relative to `root`, or the last part of it."""
    return path.relative_to(root).as_posix() if root else path.name


def label_rows(
    model: OnnxClassifier, name: str, probabilities: npt.NDArray[np.float32], top_k: int
) -> list[tuple[str, int, str, float, bool]]:
    """The rows of an input in the table, whose columns are COLUMNS."""
    known = model.is_known(probabilities)
    best = enumerate(model.best(probabilities, top_k), start=1)
    return [(name, rank, label, value, known) for rank, (label, value) in best]


def label_each(
    model: OnnxClassifier, inputs: Sequence[Path], batch_size: int, max_bad_frames: float = 0.1
) -> Iterator[Labeled]:
    """Label inputs one after the other, while a thread decodes the next ones.

    An input that cannot be read, or on which the model fails, has no label; the others do not
    notice.

    Args:
        model: the exported model.
        inputs: from `find_inputs`.
        batch_size: clips per call of the model, at most; clips of one size share a call.
        max_bad_frames: share of a video's frames that may be damaged.
    """

    def read(path: Path) -> Clip | UserError:
        try:
            return read_clip(path, model.clip_len, model.views, max_bad_frames)
        except Exception as error:  # of the libraries that decode, too
            return reading_failure(path, error)

    batch: list[tuple[Path, Clip]] = []
    for path, clip in _decode_ahead(inputs, read, batch_size):
        if isinstance(clip, UserError):
            yield Labeled(path, None, printable(str(clip)))
            continue
        full = len(batch) >= clips_a_batch(batch_size, clip.frames.nbytes)
        if batch and (full or clip.frames.shape != batch[0][1].frames.shape):
            yield from _classify(model, batch)
            batch = []
        batch.append((path, clip))
    if batch:
        yield from _classify(model, batch)


def model_failure(path: Path, frames: Frames, error: Exception) -> UserError:
    """The error for an input on which the model fails, in one line."""
    height, width = frames.shape[-3:-1]
    reason = _STATUS.sub("", one_line(error, 1000))
    if isinstance(error, MemoryError) or "alloc" in reason:
        reason = "there is not enough memory"
    return UserError(f"{path}: the model fails on frames of {width}x{height} ({reason[:200]}).")


def _classify(model: OnnxClassifier, batch: Sequence[tuple[Path, Clip]]) -> Iterator[Labeled]:
    """Label clips of one size together; one by one if the model fails on them."""
    try:
        results = model.predict(np.stack([clip.frames for _, clip in batch]))
    except Exception as error:  # ONNX Runtime has a class for each status
        if len(batch) > 1:
            for item in batch:
                yield from _classify(model, [item])
            return
        [(path, clip)] = batch
        yield Labeled(path, None, printable(str(model_failure(path, clip.frames, error))))
        return
    for (path, clip), probabilities in zip(batch, results, strict=True):
        note = printable(f"{path}: {clip.note}.") if clip.note else ""
        yield Labeled(path, probabilities, note=note)


def _decode_ahead(
    inputs: Sequence[Path], read: Callable[[Path], Clip | UserError], batch_size: int
) -> Iterator[tuple[Path, Clip | UserError]]:
    """Each input with its frames, or the error, while a thread decodes the next ones."""
    ahead = _DECODED_AHEAD
    waiting: deque[tuple[Path, Future[Clip | UserError]]] = deque()
    with ThreadPoolExecutor(1) as pool:  # FFmpeg and the model are multi-threaded themselves
        try:
            for path in inputs:
                waiting.append((path, pool.submit(read, path)))
                while len(waiting) > ahead:
                    first, future = waiting.popleft()
                    clip = future.result()
                    if not isinstance(clip, UserError):
                        ahead = max(_DECODED_AHEAD, clips_a_batch(batch_size, clip.frames.nbytes))
                    yield first, clip
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def clips_a_batch(batch_size: int, num_bytes: int) -> int:
    """At most `batch_size`, and fewer of large clips (bytes of the frames of one)."""
    return max(1, min(batch_size, _BATCH_BYTES // num_bytes))
