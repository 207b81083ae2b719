"""The frames of a folder or a video, as a model takes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from k400tiny_lib.errors import UserError, listed, one_line
from k400tiny_lib.media.frames import list_frames, read_images
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.media.video import sample_video

Frames = npt.NDArray[np.uint8]

_MAX_NAMES = 3  # of pictures in a note


class Clip(NamedTuple):
    """The frames of an input."""

    frames: Frames
    note: str = ""  # what is damaged in a video, or which pictures of a folder are no frames


def read_frames(path: str | Path, metadata: Mapping[str, Any]) -> Frames:
    """The frames of a folder or a video for one model, as `predict` takes them.

    Args:
        path: the folder or the file.
        metadata: of the model, from MLflow (`model.metadata.metadata`) or from the file
            (`session.get_modelmeta().custom_metadata_map`).

    Returns:
        uint8 (num_frames, H, W, 3), RGB; num_frames is that of the metadata.

    Raises:
        UserError: if the path cannot be read, or the model was not exported by export_onnx.
    """
    try:
        clip_len = int(json.loads(str(metadata["clip_len"])))
        views = int(json.loads(str(metadata.get("views_in_graph", 1))))
    except (KeyError, ValueError):
        raise UserError(
            "metadata: no clip_len in it. Needed: that of a model that export_onnx made."
        ) from None
    return read_clip(path, clip_len, views).frames


def read_clip(path: str | Path, clip_len: int, views: int = 1, max_bad_frames: float = 0.1) -> Clip:
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
    path = Path(path)
    if path.is_dir():
        names = list_frames(path)
        if not names.frames:
            raise UserError(f"{path} holds no .jpg or .png frames. Needed: a frame folder.")
        indices = view_indices(len(names.frames), clip_len, views).ravel()
        pictures = [f"{name} is left out ({kind})" for name, kind in names.left_out.items()]
        return Clip(read_images(path, indices.tolist()), listed(pictures, _MAX_NAMES))
    sampled = sample_video(path, clip_len, views=views, max_bad_frames=max_bad_frames)
    return Clip(sampled.frames, sampled.note)


def reading_failure(path: Path, error: Exception) -> UserError:
    """The error for an input that cannot be read, in one line."""
    if isinstance(error, UserError):
        return UserError(str(error).removeprefix("data_path: "))
    if isinstance(error, MemoryError):
        return UserError(f"{path} cannot be read: its frames do not fit in memory.")
    reason = error.strerror if isinstance(error, OSError) else None
    return UserError(f"{path} cannot be read: {reason or one_line(error)}.")
