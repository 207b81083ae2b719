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
from k400tiny_lib.export.onnx_graph import INPUT, OUTPUT, PICTURES
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input
from k400tiny_lib.system import available_cores

BATCHES = (1, 2, 5)
SIZES = ((336, 336), (240, 320), (128, 128), (129, 257))  # height, width
_LATENCY_RUNS = 5

Probabilities = npt.NDArray[np.float32]
Predict = Callable[[Tensor], Probabilities]  # uint8 (N, T, H, W, 3) -> float32 (N, K)


# Pixels are whole numbers. One that lies between two may be rounded apart by the graph and by
# torchvision: 0.01 % on real clips, up to 6 % seen on noise of 40 x 48 px, resized to 36 x 48
# without antialiasing. Rounding down in place of to the nearest would move half of all pixels,
# another way of resizing more than one level.
_ROUNDED_SHARE, _ROUNDED_ALWAYS = 0.3, 10  # a tiny crop has few


@dataclass(frozen=True)
class ParityCase:
    """The difference between ONNX Runtime and PyTorch on one batch.

    Attributes:
        case: what the batch is.
        max_abs_diff, same_top1: of the probabilities, on the pixels of the graph.
        pixels_off: values of these that are not those of evaluation.
        max_pixel_diff: of them, in gray levels.
        pixels: number of values.
    """

    case: str
    max_abs_diff: float
    same_top1: bool
    pixels_off: int = 0
    max_pixel_diff: float = 0.0
    pixels: int = 1

    @property
    def same_pixels(self) -> bool:
        """Whether the pixels are those of evaluation but for their rounding."""
        most = _ROUNDED_ALWAYS + _ROUNDED_SHARE * self.pixels
        return self.max_pixel_diff <= 1 and self.pixels_off <= most


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
    model: nn.Module,
    geometry: Geometry,
    frames: Tensor,
    views: int = 1,
    temperature: float = 1.0,
    pixels: Tensor | None = None,
) -> Probabilities:
    """Classify in PyTorch with the preprocessing of evaluation.

    Args:
        model: in evaluation mode, on the CPU.
        geometry: how frames are resized and cropped.
        frames: uint8 (N, views * T, H, W, 3), RGB.
        views: along T, averaged.
        temperature: of `evaluation.calibration.scale`.
        pixels: uint8 (N, C, views * T, h, w), in place of those that `evaluated_pixels` makes.

    Returns:
        float32 (N, K).
    """
    clips = evaluated_pixels(geometry, frames) if pixels is None else pixels
    clips = clips.unflatten(2, (views, -1)).transpose(1, 2).flatten(0, 1)  # -> (N * V, C, T, h, w)
    logits = model(model_input(model, clips))
    averaged = logits.double().softmax(1).unflatten(0, (-1, views)).mean(1)
    return scale(averaged.numpy(), temperature).astype(np.float32)


def evaluated_pixels(geometry: Geometry, frames: Tensor) -> Tensor:
    """What evaluation shows a model: uint8 (N, T, H, W, 3) to uint8 (N, C, T, h, w)."""
    return torch.stack([crop_views(video, geometry, 1)[0] for video in frames])


def compare_outputs(
    proto: onnx.ModelProto,
    eager: Callable[..., Probabilities],
    geometry: Geometry,
    clips: Sequence[Tensor],
    any_length: bool,
) -> list[ParityCase]:
    """Compare on batches of 1, 2 and 5, on other frame sizes and, where T is free, on another T.

    The pixels are compared with those of evaluation, and the network on the same pixels: a sharp
    network answers a pixel that was rounded apart with another probability.

    Args:
        proto: the exported graph.
        eager: the same model in PyTorch, `run_eager` with all arguments but frames and pixels.
        geometry: of evaluation.
        clips: uint8 (T, H, W, 3) each, as many as the largest batch.
        any_length: whether the graph takes any T.
    """
    batches = {f"batch {size}": torch.stack(tuple(clips[:size])) for size in BATCHES}
    for (height, width), clip in zip(SIZES, clips, strict=False):
        batches[f"{height}x{width}"] = _resized(clip, height, width)[None]
    if any_length:
        longer = torch.cat([clips[0], clips[1][: max(1, len(clips[1]) // 2)]])
        batches[f"{len(longer)} frames"] = longer[None]
    session = open_session(_with_pixels(proto))
    return [_compare(name, session, eager, geometry, frames) for name, frames in batches.items()]


def _with_pixels(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its pixels as a second output."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.graph.output.append(onnx.helper.make_empty_tensor_value_info(PICTURES))
    copy.graph.output[-1].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    return copy


def _compare(
    name: str,
    session: onnxruntime.InferenceSession,
    eager: Callable[..., Probabilities],
    geometry: Geometry,
    frames: Tensor,
) -> ParityCase:
    actual, pictures = session.run([OUTPUT, PICTURES], {INPUT: frames.numpy()})
    pixels = torch.from_numpy(pictures).transpose(1, 2)  # (N, T, C, h, w) -> (N, C, T, h, w)
    off = (pixels - evaluated_pixels(geometry, frames).float()).abs()
    expected = eager(frames, pixels=pixels.to(torch.uint8))
    return ParityCase(
        name,
        float(np.abs(expected - actual).max()),
        bool((expected.argmax(1) == actual.argmax(1)).all()),
        int(off.count_nonzero()),
        float(off.max()),
        off.numel(),
    )


def _resized(clip: Tensor, height: int, width: int) -> Tensor:
    """A clip at another size, uint8 (T, height, width, 3)."""
    images = clip.permute(0, 3, 1, 2)  # (T, H, W, C) -> (T, C, H, W)
    images = torch.nn.functional.interpolate(images, (height, width), mode="nearest")
    return images.permute(0, 2, 3, 1).contiguous()


def require_parity(cases: Sequence[ParityCase], tolerance: float) -> float:
    """The largest difference of a probability, if every case is within the tolerance.

    Raises:
        UserError: naming the worst case, also one whose pixels are others.
    """
    if others := [case for case in cases if not case.same_pixels]:
        case = others[0]
        raise UserError(
            f"tolerance: ONNX and PyTorch do not see the same pixels ({case.case}: "
            f"{case.pixels_off} of {case.pixels} differ, by up to {case.max_pixel_diff:g} gray "
            "levels). Nothing was registered."
        )
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
