"""Proof before the name: ONNX Runtime against the eager path of evaluation."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from k400tiny_lib.data.loading.transforms import center_crop, resize_exactly
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.export.onnx_graph import INPUT
from k400tiny_lib.models.weights import model_input

BATCHES = (1, 2, 5)
SIZES = ((336, 336), (240, 320), (128, 128), (129, 257))  # height, width
_LATENCY_RUNS = 5

Probabilities = npt.NDArray[np.float32]
Eager = Callable[[Tensor], Probabilities]  # run_eager with all but its frames given


@dataclass(frozen=True)
class Comparison:
    """How ONNX Runtime and PyTorch differ on one batch."""

    case: str
    max_abs_diff: float
    same_top1: bool


def open_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU, where parity is proven."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Its threads would go on spinning after a call, at the cost of PyTorch's in the comparison.
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
    model: nn.Module,
    frames: Tensor,
    resize_size: int,
    crop_size: int,
    views: int = 1,
    temperature: float = 1.0,
) -> Probabilities:
    """Classify the way evaluation does it, in PyTorch.

    Args:
        model: in evaluation mode, on the CPU.
        frames: uint8 (N, views * T, H, W, 3), RGB.
        resize_size, crop_size: of the transform, in pixels.
        views: along T, averaged.
        temperature: of `evaluation.calibration.scale`.

    Returns:
        float32 (N, K).
    """
    clips = torch.stack(
        [center_crop(resize_exactly(clip, [resize_size]), crop_size) for clip in frames]
    )
    clips = clips.unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1)  # -> (N * V, C, T, h, w)
    logits = model(model_input(model, clips))
    averaged = logits.double().softmax(1).unflatten(0, (-1, views)).mean(1)
    return scale(averaged.numpy(), temperature).astype(np.float32)


def compare(
    session: onnxruntime.InferenceSession, eager: Eager, clips: Sequence[Tensor], frames_free: bool
) -> list[Comparison]:
    """Compare on batches of 1, 2 and 5, on other frame sizes and, where T is free, on another T.

    Args:
        session: the exported graph.
        eager: the same model in PyTorch.
        clips: uint8 (T, H, W, 3) each, as many as the largest batch.
        frames_free: whether the graph takes any T.
    """
    cases = {f"batch {size}": torch.stack(tuple(clips[:size])) for size in BATCHES}
    for (height, width), clip in zip(SIZES, clips, strict=False):
        cases[f"{height}x{width}"] = _resized(clip, height, width)[None]
    if frames_free:
        longer = torch.cat([clips[0], clips[1][: max(1, len(clips[1]) // 2)]])
        cases[f"{len(longer)} frames"] = longer[None]
    results = []
    for case, frames in cases.items():
        expected, actual = eager(frames), run_onnx(session, frames)
        results.append(
            Comparison(
                case,
                float(np.abs(expected - actual).max()),
                bool((expected.argmax(1) == actual.argmax(1)).all()),
            )
        )
    return results


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    """A clip at another size, uint8 (T, height, width, 3)."""
    images = clip.permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
    images = torch.nn.functional.interpolate(images, (height, width), mode="nearest")
    return images.permute(0, 2, 3, 1).contiguous()


def require_parity(comparisons: Sequence[Comparison], tolerance: float) -> float:
    """The largest difference, if every case is within the tolerance.

    Raises:
        UserError: naming the worst case.
    """
    # NaN compares false with everything and must count as the worst.
    worst = max(comparisons, key=lambda c: (np.isnan(c.max_abs_diff), c.max_abs_diff))
    wrong = [c for c in comparisons if not c.same_top1]
    if not worst.max_abs_diff <= tolerance or wrong:
        found = f"{worst.case} differs by {worst.max_abs_diff:.2e}"
        found += f", top-1 differs on {wrong[0].case}" if wrong else ""
        raise UserError(
            f"tolerance: ONNX and PyTorch do not agree ({found}). Needed: at most {tolerance:g} "
            "and the same top-1. Nothing was registered."
        )
    return worst.max_abs_diff


def latencies_ms(
    session: onnxruntime.InferenceSession, eager: Eager, clip: Tensor
) -> tuple[float, float]:
    """Median milliseconds for one clip from frames to probabilities: (ONNX Runtime, PyTorch)."""
    frames = clip[None]
    return _median_ms(lambda: run_onnx(session, frames)), _median_ms(lambda: eager(frames))


def _median_ms(call: Callable[[], object]) -> float:
    call()  # warms up
    seconds = []
    for _ in range(_LATENCY_RUNS):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return 1000 * median(seconds)
