"""Files that lie beside a graph: its labels, and a test vector that proves a runtime.

The metadata within the file has the labels too, but not every runtime can read it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from k400tiny_lib.export.parity import open_session, run_onnx

LABELS, TEST_VECTOR = "labels.txt", "test_vector.npz"
_CLIPS = 2


def write_companions(folder: Path, proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Write the labels and the test vector of a graph.

    Args:
        folder: gets `labels.txt`, and `test_vector.npz` with `frames`, uint8 (2, T, H, W, 3), and
            the `probabilities`, float32 (2, K), of ONNX Runtime.
        proto: the graph.
        metadata: as written into it.
    """
    (folder / LABELS).write_text(labels_text(metadata["class_names"]), "utf-8", newline="\n")
    num_frames = metadata.get("views_in_graph", 1) * metadata["clip_len"]
    frames = make_frames(num_frames, int(np.max(metadata.get("resize_size", 128))))
    probabilities = run_onnx(open_session(proto), torch.from_numpy(frames))
    # The names of the graph's input and output.
    np.savez_compressed(folder / TEST_VECTOR, frames=frames, probabilities=probabilities)


def labels_text(class_names: list[str]) -> str:
    """One class a line, so that the class id is the number of the line, from 0.

    A label that has line breaks is written with spaces in their place.
    """
    lines = (" ".join(name.splitlines()) for name in class_names)
    text = "".join(f"{line}\n" for line in lines)
    return text.encode(errors="replace").decode()  # half a surrogate pair is no text


def make_frames(num_frames: int, resize_size: int) -> npt.NDArray[np.uint8]:
    """Clips that show whether a runtime resizes right, of few bytes when compressed.

    Fine noise half as large again as the model's pictures: a runtime that does not smooth before
    it makes them smaller gives other probabilities. A row is the same noise as the row above or its
    negative, so that the file is small.

    Args:
        num_frames: T of the graph.
        resize_size: side of the pictures after resizing, in pixels.

    Returns:
        uint8 (2, T, H, W, 3), RGB, H and W not equal.
    """
    rng = np.random.default_rng(0)
    height, width = resize_size * 3 // 2, resize_size * 3 // 2 + 16
    row = rng.integers(0, 256, (_CLIPS, num_frames, 1, width, 3), np.uint8)
    negative = rng.integers(0, 2, (_CLIPS, num_frames, height, 1, 1), np.uint8).astype(bool)
    return np.where(negative, 255 - row, row)
