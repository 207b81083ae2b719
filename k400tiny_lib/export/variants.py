"""Smaller variants of a graph, and whether they are worth their loss of accuracy here."""

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pandas as pd
from torch import Tensor

from k400tiny_lib.export.onnx_graph import INPUT
from k400tiny_lib.export.parity import open_session, run_onnx
from k400tiny_lib.export.scoring import ExportClips, top1

FLOAT32 = "float32"
_ROUNDS, _BATCH, _BATCH_ROUNDS = 20, 4, 5


@dataclass(frozen=True)
class Variant:
    """A row of the table of variants.

    Attributes:
        name: float32, int8 or fp16.
        size_mb: of the file.
        latency_p50_ms, latency_p95_ms: of one clip, from frames to probabilities.
        clips_per_second: in batches of 4.
        test_acc1: in percent.
        kept: whether this one is registered.
        reason: why or why not.
    """

    name: str
    size_mb: float
    latency_p50_ms: float
    latency_p95_ms: float
    clips_per_second: float
    test_acc1: float
    kept: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """The graph to register.

    Attributes:
        name: `float32`, or that of the variant.
        proto: the graph.
        predictions: its predictions table of the test clips, None where it was not scored.
        variants: all that were compared.
    """

    name: str
    proto: onnx.ModelProto
    predictions: pd.DataFrame | None
    variants: Sequence[Variant] = ()


def choose_variant(
    name: str,
    proto: onnx.ModelProto,
    plain: onnx.ModelProto,
    predictions: pd.DataFrame,
    clips: ExportClips,
    max_accuracy_drop: float,
) -> Choice:
    """Make a variant, score it on the test clips, time it against float32 and keep one of the two.

    Args:
        name: `int8` or `fp16`.
        proto: float32.
        plain: the same model without optimizations that only float32 allows.
        predictions: of float32 on the test clips.
        clips: to calibrate and to score on.
        max_accuracy_drop: points of top-1 that the variant may lose.
    """
    calibration = clips.for_calibration()
    protos = {FLOAT32: proto, name: make_variant(name, plain, calibration)}
    sessions = {key: open_session(value) for key, value in protos.items()}
    tables = {FLOAT32: predictions, name: clips.predictions(partial(run_onnx, sessions[name]))}
    variants = compare_variants(
        {key: top1(table) for key, table in tables.items()},
        {key: value.ByteSize() for key, value in protos.items()},
        time_in_turns(sessions, calibration[0]),
        max_accuracy_drop,
    )
    [kept] = [variant.name for variant in variants if variant.kept]
    return Choice(kept, protos[kept], tables[kept], variants)


def make_variant(name: str, proto: onnx.ModelProto, clips: Sequence[Tensor]) -> onnx.ModelProto:
    """Make a variant of a float32 graph, with the same inputs and outputs.

    Args:
        name: `int8` or `fp16`.
        proto: the graph, which is not changed.
        clips: uint8 (T, H, W, 3), training clips to calibrate int8 on.

    Returns:
        The checked graph.
    """
    variant = _to_int8(proto, clips) if name == "int8" else _to_fp16(proto)
    onnx.checker.check_model(variant, full_check=True)
    return variant


def _to_int8(proto: onnx.ModelProto, clips: Sequence[Tensor]) -> onnx.ModelProto:
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = ({INPUT: clip[None].numpy()} for clip in clips)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return next(self.feeds, None)

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder) / f"{n}.onnx" for n in ("in", "prepared", "out"))
        onnx.save(proto, source)
        quant_pre_process(str(source), str(prepared))
        # Unsigned activations, signed weights by channel: dynamic and other settings were 8 to 25
        # times slower on a CPU with AVX2. The operators between convolutions are quantized too:
        # with convolutions alone the result was 1.35 times slower.
        quantize_static(
            str(prepared),
            str(result),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Relu", "Add", "Reshape", "Transpose"],
        )
        quantized: onnx.ModelProto = onnx.load(result)
    return quantized


def _to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.load_from_string(proto.SerializeToString())
    with _quiet():
        # Half precision would round the resized gray levels before the graph does.
        blocked = [*DEFAULT_OP_BLOCK_LIST, "Resize", "Round"]
        half: onnx.ModelProto = convert_float_to_float16(
            copy, keep_io_types=True, op_block_list=blocked
        )
        OnnxModel.graph_topological_sort(half.graph)  # the converter appends its casts at the end
    return half


@dataclass(frozen=True)
class Timing:
    """Seconds per call, of the same rounds for all sessions that are compared."""

    single: list[float]
    batch: list[float]


def time_in_turns(
    sessions: Mapping[str, onnxruntime.InferenceSession], clip: Tensor
) -> dict[str, Timing]:
    """Time sessions on one clip and on batches of 4, one after the other within each round.

    Args:
        sessions: by name.
        clip: uint8 (T, H, W, 3).
    """
    single, batch = clip[None].numpy(), np.stack([clip.numpy()] * _BATCH)
    timings = {name: Timing([], []) for name in sessions}
    for frames, rounds, which in ((single, _ROUNDS, "single"), (batch, _BATCH_ROUNDS, "batch")):
        for number in range(-1, rounds):
            for name, session in sessions.items():
                start = time.perf_counter()
                session.run(None, {INPUT: frames})
                if number >= 0:  # the round before the first warms up
                    getattr(timings[name], which).append(time.perf_counter() - start)
    return timings


def compare_variants(
    accuracies: Mapping[str, float],
    sizes: Mapping[str, int],
    timings: Mapping[str, Timing],
    max_accuracy_drop: float,
) -> list[Variant]:
    """Keep a variant in place of float32 if it loses little accuracy and is faster.

    Args:
        accuracies: test top-1 in percent, of float32 and of the variant, by name.
        sizes: bytes of the files.
        timings: see `time_in_turns`.
        max_accuracy_drop: points that the variant may lose.

    Returns:
        float32 and the variant; exactly one of them is kept.
    """
    [name] = accuracies.keys() - {FLOAT32}
    drop = accuracies[FLOAT32] - accuracies[name]
    pairs = zip(timings[FLOAT32].single, timings[name].single, strict=True)
    speedups = [full / small for full, small in pairs]
    faster = float(np.quantile(speedups, 0.25)) > 1  # in three rounds of four, so not by chance
    measured = f"{-drop:+.2f} points and {np.median(speedups):.2f} times as fast as float32"
    kept = drop <= max_accuracy_drop and faster
    if kept:
        reason = measured
    elif not faster:
        reason = f"not faster here ({measured})"
    else:
        reason = f"loses more than max_accuracy_drop={max_accuracy_drop:g} ({measured})"
    return [
        _row(n, accuracies[n], sizes[n], timings[n], kept is (n == name), why)
        for n, why in ((FLOAT32, "" if kept else f"{name} is not kept"), (name, reason))
    ]


def _row(name: str, acc1: float, size: int, timing: Timing, kept: bool, reason: str) -> Variant:
    p50, p95 = (1000 * float(np.quantile(timing.single, q)) for q in (0.5, 0.95))
    rate = _BATCH / float(np.median(timing.batch))
    return Variant(name, size / 1e6, p50, p95, rate, acc1, kept, reason)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tools' advice about settings off the console."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(previous)
