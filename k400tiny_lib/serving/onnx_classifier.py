"""An exported model in ONNX Runtime, with checks of its input.

Imports neither PyTorch nor MLflow, so that `predict` and the served model start quickly.
"""

import ctypes
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.system import available_cores

AUTO = "auto"
_M_MMAP_THRESHOLD, _LARGE_BLOCK = -3, 1 << 20  # glibc's number of the parameter, and bytes
_CUDA, _CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


@dataclass(frozen=True)
class OnnxClassifier:
    """A model from frames to labels, with the metadata of its file.

    Attributes:
        session: the graph.
        class_names: labels by class id.
        clip_len: frames of a view.
        views: averaged in the graph; they follow one another along T.
        confidence_threshold: of the largest probability of a clip; an answer below it is marked as
            unknown. 0 marks none.
    """

    session: onnxruntime.InferenceSession
    class_names: list[str]
    clip_len: int
    views: int = 1
    confidence_threshold: float = 0.0

    @property
    def num_frames(self) -> int:
        """Frames of a clip, the T of `predict`."""
        return self.views * self.clip_len

    def is_known(self, probabilities: npt.NDArray[np.float32]) -> bool:
        """Whether the largest probability of one clip (K,) reaches the confidence threshold."""
        return bool(probabilities.max() >= self.confidence_threshold)

    def predict(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Classify clips.

        Args:
            frames: uint8 (N, views * clip_len, H, W, 3), RGB in [0, 255], no size 0.

        Returns:
            float32 (N, K), each row summing to 1.

        Raises:
            UserError: if the frames are of another type or shape.
        """
        [graph_input] = self.session.get_inputs()
        # Without this check ONNX Runtime fails with internal messages such as "division by zero in
        # node_floordiv_8".
        fits = frames.dtype == np.uint8 and frames.ndim == len(graph_input.shape) and frames.size
        for size, needed in zip(frames.shape, graph_input.shape, strict=False):
            fits = fits and (size == needed or not isinstance(needed, int))
        if not fits:
            clip_len = graph_input.shape[1] if isinstance(graph_input.shape[1], int) else "T"
            raise UserError(
                f"frames: {frames.dtype} of shape {frames.shape}. Needed: uint8 of shape "
                f"(N, {clip_len}, H, W, 3), none of them 0."
            )
        options = onnxruntime.RunOptions()
        # 100 MB, which the next video needs for its decoding. Takes a twentieth of the time.
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        [probabilities] = self.session.run(None, {graph_input.name: frames}, options)
        return cast(npt.NDArray[np.float32], probabilities)

    def best(self, probabilities: npt.NDArray[np.float32], top_k: int) -> list[tuple[str, float]]:
        """The likeliest labels of one clip with their probabilities (K,), best first."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [(self.class_names[index], float(probabilities[index])) for index in order]


def open_classifier(
    path: Path, num_threads: int | str = AUTO, device: str = AUTO, parameter: str = "model_uri"
) -> OnnxClassifier:
    """Open an exported model.

    Args:
        path: the .onnx file.
        num_threads: for one prediction; `auto` is one for each core that this process may use.
        device: `cpu`, `cuda`, or `auto` for CUDA where this ONNX Runtime offers it.
        parameter: which named the model, for the message.

    Raises:
        UserError: if the file was not exported by export_onnx, or `cuda` is not available.
    """
    _return_freed_memory()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores() if num_threads == AUTO else int(num_threads)
    # Threads that spin between two clips would take cores from the decoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of the memory of each input shape takes 50 MB and saves no time.
    options.enable_mem_pattern = False
    providers = execution_providers(device)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        metadata = session.get_modelmeta().custom_metadata_map
        class_names = json.loads(metadata["class_names"])
        clip_len = int(json.loads(metadata["clip_len"]))
        views = int(json.loads(metadata.get("views_in_graph", "1")))
        threshold = float(json.loads(metadata.get("confidence_threshold", "0")))
    except KeyError:
        what = f"{path} was not exported by export_onnx (no class names)"
        raise UserError(f"{parameter}: {what}.") from None
    except Exception as error:  # ONNX Runtime has an exception class for each status
        raise UserError(f"{parameter}: {path} cannot be opened ({one_line(error)}).") from None
    if device == "cuda" and _CUDA not in session.get_providers():
        raise UserError("device: CUDA cannot be used on this machine. Needed: device=cpu.")
    return OnnxClassifier(session, class_names, clip_len, views, threshold)


def _return_freed_memory() -> None:
    """From now on, large blocks that are freed go back to the system at once.

    By default glibc keeps most of them: 100 MB of copies of the weights when a model is opened, and
    the large frames of a video while the model takes its own memory.
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK)


def return_memory() -> None:
    """Give what is free back to the system now, also the small blocks of each thread."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def execution_providers(device: str) -> list[Any]:
    """Execution providers of ONNX Runtime for a device, by preference.

    Raises:
        UserError: if the device is `cuda` and this ONNX Runtime does not offer it.
    """
    offered = _CUDA in onnxruntime.get_available_providers()
    if device == "cuda" and not offered:
        raise UserError(
            "device: this onnxruntime offers no CUDA. Needed: onnxruntime-gpu, or device=cpu."
        )
    if device == "cpu" or not offered:
        return [_CPU]
    # The default tries every algorithm for every new frame size, which takes seconds.
    return [(_CUDA, {"cudnn_conv_algo_search": "HEURISTIC"}), _CPU]
