"""Parity check that must pass before a model is registered: ONNX Runtime against evaluation."""

import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.onnx_graph import INPUT
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.system import available_cores

BATCHES = (1, 2, 5)
SIZES = ((336, 336), (240, 320), (128, 128), (129, 257))  # height, width
_LATENCY_RUNS = 5

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Tensor], Probabilities]  # uint8 (N, T, H, W, 3) -> float32 (N, K)


@dataclass(frozen=True)
class ParityCase:
    """The difference between ONNX Runtime and PyTorch on one batch."""

    case: str
    max_abs_diff: float
    same_top1: bool


def open_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU, where parity is checked."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = available_cores()
    # Threads that spin after a call would take cores from PyTorch in the comparison.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_onnx(session: onnxruntime.InferenceSession, frames: Tensor) -> Probabilities:
    """uint8 (N, T, H, W, 3) to float32 (N, K) with ONNX Runtime."""
    result: Probabilities = session.run(None, {INPUT: frames.numpy()})[0]
    return result


@torch.inference_mode()
def run_eager(
    model: nn.Module, geometry: Geometry, frames: Tensor, views: int = 1, temperature: float = 1.0
) -> Probabilities:
    """Classify in PyTorch with the preprocessing of evaluation.

    Args:
        model: in evaluation mode, on the CPU.
        geometry: how frames are resized and cropped.
        frames: uint8 (N, views * T, H, W, 3), RGB.
        views: along T, averaged.
        temperature: of `evaluation.calibration.scale`.

    Returns:
        float32 (N, K).
    """
    clips = torch.stack([crop_views(video, geometry, 1)[0] for video in frames])
    clips = clips.unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1)  # -> (N * V, C, T, h, w)
    logits = model(model_input(model, clips))
    averaged = logits.double().softmax(1).unflatten(0, (-1, views)).mean(1)
    return scale(averaged.numpy(), temperature).astype(np.float32)


def compare_outputs(
    session: onnxruntime.InferenceSession, eager: Predict, clips: Sequence[Tensor], any_length: bool
) -> list[ParityCase]:
    """Compare on batches of 1, 2 and 5, on other frame sizes and, where T is free, on another T.

    Args:
        session: the exported graph.
        eager: the same model in PyTorch.
        clips: uint8 (T, H, W, 3) each, as many as the largest batch.
        any_length: whether the graph takes any T.
    """
    batches = {f"batch {size}": torch.stack(tuple(clips[:size])) for size in BATCHES}
    for (height, width), clip in zip(SIZES, clips, strict=False):
        batches[f"{height}x{width}"] = _resized(clip, height, width)[None]
    if any_length:
        longer = torch.cat([clips[0], clips[1][: max(1, len(clips[1]) // 2)]])
        batches[f"{len(longer)} frames"] = longer[None]
    cases = []
    for name, frames in batches.items():
        expected, actual = eager(frames), run_onnx(session, frames)
        difference = float(np.abs(expected - actual).max())
        same_top1 = bool((expected.argmax(1) == actual.argmax(1)).all())
        cases.append(ParityCase(name, difference, same_top1))
    return cases


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    """A clip at another size, uint8 (T, height, width, 3)."""
    images = clip.permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
    images = torch.nn.functional.interpolate(images, (height, width), mode="nearest")
    return images.permute(0, 2, 3, 1).contiguous()


def require_parity(cases: Sequence[ParityCase], tolerance: float) -> float:
    """The largest difference, if every case is within the tolerance.

    Raises:
        UserError: naming the worst case.
    """
    # NaN compares false with everything and must count as the worst.
    worst = max(cases, key=lambda c: (np.isnan(c.max_abs_diff), c.max_abs_diff))
    wrong = [case for case in cases if not case.same_top1]
    if not worst.max_abs_diff <= tolerance or wrong:
        differences = f"{worst.case} differs by {worst.max_abs_diff:.2e}"
        differences += f", top-1 differs on {wrong[0].case}" if wrong else ""
        raise UserError(
            f"tolerance: ONNX and PyTorch do not agree ({differences}). Needed: at most "
            f"{tolerance:g} and the same top-1. Nothing was registered."
        )
    return worst.max_abs_diff


def latency_ms(predict: Predict, clip: Tensor) -> float:
    """Median milliseconds from the frames of one clip, uint8 (T, H, W, 3), to probabilities."""
    # The first run warms up.
    _, *seconds = timeit.repeat(partial(predict, clip[None]), number=1, repeat=1 + _LATENCY_RUNS)
    return 1000 * median(seconds)
