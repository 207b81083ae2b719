"""Labels of clips (frame folders and videos) as a table, decoded while the model computes."""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from k400tiny_lib.errors import UserError, listed, printable
from k400tiny_lib.media.frames import list_frames, read_images
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.video import sample_video
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier

Frames = npt.NDArray[np.uint8]

# The graph converts a clip to float32 several times over, so large clips get small batches.
_BATCH_BYTES = 64 << 20
_MAX_NAMES = 3  # of pictures in a note
_DECODED_AHEAD = 2  # clips, or one batch where that is more


class Labels(NamedTuple):
    """What `label_inputs` gives.

    Attributes:
        table: columns input, rank, label, probability.
        failures: a message per unreadable input.
        notes: a message per input of which something is damaged or left out.
    """

    table: pd.DataFrame
    failures: list[str]
    notes: list[str]


class Clip(NamedTuple):
    """The frames of an input."""

    frames: Frames
    note: str = ""  # what is damaged in a video, or which pictures of a folder are no frames


def read_clip(path: Path, clip_len: int, views: int = 1, max_bad_frames: float = 0.1) -> Clip:
    """Frames spread evenly over a frame folder or a video.

    Args:
        path: the folder or the file.
        clip_len: frames of a view.
        views: one after the other.
        max_bad_frames: share of a video's frames that may be damaged.

    Returns:
        uint8 (views * clip_len, H, W, 3), RGB; of a video, squares as prepare_data makes them.

    Raises:
        UserError: if it cannot be read.
    """
    if path.is_dir():
        names = list_frames(path)
        indices = view_indices(len(names.frames), clip_len, views).ravel()
        pictures = [f"{name} is left out ({kind})" for name, kind in names.left_out.items()]
        return Clip(read_images(path, indices.tolist()), listed(pictures, _MAX_NAMES))
    sampled = sample_video(path, clip_len, views=views, max_bad_frames=max_bad_frames)
    return Clip(sampled.frames, sampled.note)


def label_inputs(
    model: OnnxClassifier,
    inputs: Sequence[Path],
    batch_size: int,
    top_k: int,
    root: Path | None = None,
    max_bad_frames: float = 0.1,
) -> Labels:
    """Label every input that can be read, while a thread decodes the next ones.

    Args:
        model: the exported model.
        inputs: from `find_inputs`.
        batch_size: clips per call of the model, at most; clips of one size share a call.
        top_k: labels per clip.
        root: directory of the inputs, to which the names in the table are relative; None for the
            last part of each path.
        max_bad_frames: share of a video's frames that may be damaged.
    """
    failures: list[str] = []
    notes: list[str] = []
    rows = []

    def read(path: Path) -> Clip | UserError:
        try:
            return read_clip(path, model.clip_len, model.views, max_bad_frames)
        except UserError as error:
            return UserError(str(error).removeprefix("data_path: "))
        except OSError as error:
            return UserError(f"{path} cannot be read: {error.strerror or error}.")

    def readable() -> Iterator[tuple[Path, Frames]]:
        for path, clip in _decode_ahead(inputs, read, batch_size):
            if isinstance(clip, UserError):
                failures.append(printable(str(clip)))
                bar.write(f"skipped: {failures[-1]}", file=sys.stderr)
                bar.update()
                continue
            if clip.note:
                notes.append(printable(f"{path}: {clip.note}."))
                bar.write(f"note: {notes[-1]}", file=sys.stderr)
            yield path, clip.frames

    with tqdm(total=len(inputs), desc="predict", unit="clip", mininterval=1) as bar:
        for paths, clips in _batches(readable(), batch_size):
            for path, values in zip(paths, model.predict(np.stack(clips)), strict=True):
                best = enumerate(model.best(values, top_k), start=1)
                name = path.relative_to(root).as_posix() if root else path.name
                rows += [(name, rank, label, value) for rank, (label, value) in best]
            bar.update(len(paths))
    table = pd.DataFrame(rows, columns=["input", "rank", "label", "probability"])
    return Labels(table, failures, notes)


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
                        ahead = max(_DECODED_AHEAD, _clips_a_batch(batch_size, clip.frames))
                    yield first, clip
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _clips_a_batch(batch_size: int, clip: Frames) -> int:
    return max(1, min(batch_size, _BATCH_BYTES // clip.nbytes))


def _batches(
    readable: Iterable[tuple[Path, Frames]], batch_size: int
) -> Iterator[tuple[list[Path], list[Frames]]]:
    paths: list[Path] = []
    clips: list[Frames] = []
    for path, clip in readable:
        full = len(clips) >= _clips_a_batch(batch_size, clip)
        if clips and (full or clip.shape != clips[0].shape):
            yield paths, clips
            paths, clips = [], []
        paths.append(path)
        clips.append(clip)
    if clips:
        yield paths, clips
