"""Labels of clips (frame folders and videos) as a table, decoded while the model computes."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.media.frames import frame_files, read_images
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.video import sample_video
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier

Frames = npt.NDArray[np.uint8]

# The graph converts a clip to float32 several times over, so large clips get small batches.
_BATCH_BYTES = 64 << 20
_DECODED_AHEAD = 2  # clips, or one batch where that is more


def read_clip(path: Path, clip_len: int, views: int = 1) -> Frames:
    """uint8 (views * clip_len, H, W, 3), RGB, spread evenly over a frame folder or a video.

    Raises:
        UserError: if it cannot be read.
    """
    if path.is_dir():
        indices = view_indices(len(frame_files(path)), clip_len, views).ravel()
        return read_images(path, indices.tolist())
    return sample_video(path, clip_len, views=views).frames


def label_inputs(
    model: OnnxClassifier,
    inputs: Sequence[Path],
    batch_size: int,
    top_k: int,
    root: Path | None = None,
) -> tuple[pd.DataFrame, list[str]]:
    """Label every input that can be read, while a thread decodes the next ones.

    Args:
        model: the exported model.
        inputs: from `find_inputs`.
        batch_size: clips per call of the model, at most; clips of one size share a call.
        top_k: labels per clip.
        root: directory of the inputs, to which the names in the table are relative; None for the
            last part of each path.

    Returns:
        A table (input, rank, label, probability), and a message per unreadable input.
    """
    failures: list[str] = []
    rows = []
    with tqdm(total=len(inputs), desc="predict", unit="clip", mininterval=1) as bar:
        decoded = _decode_ahead(inputs, model.clip_len, model.views, batch_size)
        for paths, clips in _batches(decoded, batch_size, failures, bar):
            for path, values in zip(paths, model.predict(np.stack(clips)), strict=True):
                best = enumerate(model.best(values, top_k), start=1)
                name = path.relative_to(root).as_posix() if root else path.name
                rows += [(name, rank, label, value) for rank, (label, value) in best]
            bar.update(len(paths))
    return pd.DataFrame(rows, columns=["input", "rank", "label", "probability"]), failures


def _decode_ahead(
    inputs: Sequence[Path], clip_len: int, views: int, batch_size: int
) -> Iterator[tuple[Path, Frames | UserError]]:
    """Each input with its frames, or the error, while a thread decodes the next ones."""

    def read(path: Path) -> Frames | UserError:
        try:
            return read_clip(path, clip_len, views)
        except UserError as error:
            return UserError(str(error).removeprefix("data_path: "))
        except OSError as error:
            return UserError(f"{path} cannot be read: {error.strerror or error}.")

    ahead = _DECODED_AHEAD
    waiting: deque[tuple[Path, Future[Frames | UserError]]] = deque()
    with ThreadPoolExecutor(1) as pool:  # FFmpeg and the model are multi-threaded themselves
        try:
            for path in inputs:
                waiting.append((path, pool.submit(read, path)))
                while len(waiting) > ahead:
                    first, future = waiting.popleft()
                    frames = future.result()
                    if not isinstance(frames, UserError):
                        ahead = max(_DECODED_AHEAD, _clips_a_batch(batch_size, frames))
                    yield first, frames
            for first, future in waiting:
                yield first, future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _clips_a_batch(batch_size: int, clip: Frames) -> int:
    return max(1, min(batch_size, _BATCH_BYTES // clip.nbytes))


def _batches(
    decoded: Iterable[tuple[Path, Frames | UserError]],
    batch_size: int,
    failures: list[str],
    bar: "tqdm[Any]",
) -> Iterator[tuple[list[Path], list[Frames]]]:
    paths: list[Path] = []
    clips: list[Frames] = []
    for path, clip in decoded:
        if isinstance(clip, UserError):
            message = printable(str(clip))
            failures.append(message)
            bar.write(f"skipped: {message}", file=sys.stderr)
            bar.update()
            continue
        full = len(clips) >= _clips_a_batch(batch_size, clip)
        if clips and (full or clip.shape != clips[0].shape):
            yield paths, clips
            paths, clips = [], []
        paths.append(path)
        clips.append(clip)
    if clips:
        yield paths, clips
