"""What `predict` is given: frame folders, videos, directories of them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from k400tiny_lib.data.decoding import read_frames
from k400tiny_lib.data.frames import frame_files, natural_key
from k400tiny_lib.data.sampling import uniform_indices
from k400tiny_lib.data.video import VIDEO_SUFFIXES, read_video
from k400tiny_lib.errors import UserError
from k400tiny_lib.export.registry import RegisteredModel


def find_inputs(path: Path) -> list[Path]:
    """The clips behind a path: itself, or the frame folders and videos that it holds.

    Raises:
        UserError: if there are none.
    """
    if not path.exists():
        raise UserError(
            f"input: {path} does not exist. Needed: a frame folder, a video, or a directory."
        )
    if _is_clip(path):
        return [path]
    inside = sorted(path.iterdir(), key=lambda p: natural_key(p.name)) if path.is_dir() else []
    found = [child for child in inside if _is_clip(child)]
    if not found:
        raise UserError(
            f"input: {path} holds no clips. Needed: folders of .jpg or .png frames, or videos "
            f"({', '.join(VIDEO_SUFFIXES)})."
        )
    return found


def _is_clip(path: Path) -> bool:
    if path.is_dir():
        return bool(frame_files(path))
    return path.suffix.lower() in VIDEO_SUFFIXES


def read_clip(path: Path, clip_len: int) -> Tensor:
    """uint8 (clip_len, H, W, 3), RGB, spread evenly over a frame folder or a video.

    Raises:
        UserError: if it cannot be read.
    """
    if path.is_dir():
        return read_frames(path, uniform_indices(len(frame_files(path)), clip_len).tolist())
    return read_video(path, clip_len)


def label_inputs(
    model: RegisteredModel, inputs: Sequence[Path], batch_size: int, top_k: int
) -> tuple[pd.DataFrame, list[str]]:
    """Label every input that can be read.

    Args:
        model: the registered model.
        inputs: what `find_inputs` found.
        batch_size: clips per call of the model, at most; clips of one size share a call.
        top_k: labels per clip.

    Returns:
        A table (input, rank, label, probability), and a message per unreadable input.
    """
    failures: list[str] = []
    rows = []
    for paths, frames in _batches(inputs, model.clip_len, batch_size, failures):
        probabilities = model.predict(frames)
        for path, values in zip(paths, probabilities, strict=True):
            best = np.argsort(-values, kind="stable")[:top_k]
            rows += [
                (path.name, rank, model.class_names[index], float(values[index]))
                for rank, index in enumerate(best, start=1)
            ]
    return pd.DataFrame(rows, columns=["input", "rank", "label", "probability"]), failures


def _batches(
    inputs: Sequence[Path], clip_len: int, batch_size: int, failures: list[str]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    paths: list[Path] = []
    clips: list[np.ndarray] = []
    for path in inputs:
        try:
            clip = read_clip(path, clip_len).numpy()
        except UserError as error:
            failures.append(str(error))
            continue
        if clips and (len(clips) == batch_size or clip.shape != clips[0].shape):
            yield paths, np.stack(clips)
            paths, clips = [], []
        paths.append(path)
        clips.append(clip)
    if clips:
        yield paths, np.stack(clips)
