"""Smaller variants of a graph, and whether they are worth their loss of accuracy here."""

import tempfile
import timeit
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pandas as pd
from torch import Tensor

from k400tiny_lib.export.onnx_graph import INPUT, quiet, require_oldest_format
from k400tiny_lib.export.parity import open_session, run_onnx
from k400tiny_lib.export.scoring import ExportClips, top1
from k400tiny_lib.system import cpu_name

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
        measured_on: the processor of the latencies and accuracies; another one may differ in both.
    """

    name: str
    size_mb: float
    latency_p50_ms: float
    latency_p95_ms: float
    clips_per_second: float
    test_acc1: float
    kept: bool
    reason: str
    measured_on: str


@dataclass(frozen=True)
class Choice:
    """The graph to register.

    Attributes:
        name: `float32`, or that of the variant.
        proto: the graph.
        predictions: its predictions table of the test clips, None where it was not scored.
        variants: all that were compared.
        rejected: a variant that was made and is not to be registered.
    """

    name: str
    proto: onnx.ModelProto
    predictions: pd.DataFrame | None
    variants: Sequence[Variant] = ()
    rejected: "Choice | None" = None


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
    accuracies = {key: top1(table) for key, table in tables.items()}
    sizes = {key: value.ByteSize() for key, value in protos.items()}
    clip = calibration[0].numpy()
    single = time_in_turns(sessions, clip[None], _ROUNDS)
    batch = time_in_turns(sessions, np.stack([clip] * _BATCH), _BATCH_ROUNDS)
    variants = compare_variants(accuracies, sizes, single, batch, max_accuracy_drop)
    [kept] = [variant.name for variant in variants if variant.kept]
    rejected = None if kept == name else Choice(name, protos[name], tables[name])
    return Choice(kept, protos[kept], tables[kept], variants, rejected)


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
    require_oldest_format(variant)
    onnx.checker.check_model(variant, full_check=True)
    return variant


def _to_int8(proto: onnx.ModelProto, clips: Sequence[Tensor]) -> onnx.ModelProto:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.feeds = ({INPUT: clip[None].numpy()} for clip in clips)

        def get_next(self) -> dict[str, npt.NDArray[np.uint8]] | None:
            return next(self.feeds, None)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (Path(folder) / f"{n}.onnx" for n in ("in", "prepared", "out"))
        onnx.save(proto, source)
        # ONNX Runtime's symbolic shapes fail on the free size of the window that the frames are cut
        # to; those of onnx do for convolutions.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        # Unsigned activations, signed weights by channel: dynamic and other settings were 8 to 25
        # times slower on a CPU with AVX2. The operators between convolutions are quantized too:
        # with convolutions alone the result was 1.35 times slower. ReLU6 is a Clip: left out, it
        # made tsn_efficientnet_lite0 1.6 times slower, with three times the error.
        quantization.quantize_static(
            str(prepared),
            str(result),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            weight_type=quantization.QuantType.QInt8,
            activation_type=quantization.QuantType.QUInt8,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "Reshape", "Transpose"],
            nodes_to_exclude=_preprocessing(onnx.load(prepared)),
        )
        quantized: onnx.ModelProto = onnx.load(result)
    return quantized


def _to_fp16(proto: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    # Half precision would round the resized gray levels before the graph does. The converter's list
    # of nodes to leave alone does not help: it casts what one of them gives to the next.
    proto = onnx.shape_inference.infer_shapes(proto)
    resizing = set(_preprocessing(proto))
    kept = [node for node in proto.graph.node if node.name in resizing]
    nodes = [node for node in proto.graph.node if node.name not in resizing]
    rest = onnx.ModelProto()
    rest.CopyFrom(proto)
    _replace(rest.graph.node, nodes)
    made = {name for node in kept for name in node.output}
    values = {value.name: value for value in proto.graph.value_info}
    inputs = sorted(made & {name for node in nodes for name in node.input})
    rest.graph.input.extend(values[name] for name in inputs)
    _replace(rest.graph.value_info, [v for name, v in values.items() if name not in made])
    with quiet():
        half: onnx.ModelProto = convert_float_to_float16(rest, keep_io_types=True)
    _replace(half.graph.node, [*kept, *half.graph.node])
    _replace(half.graph.input, [v for v in half.graph.input if v.name not in inputs])
    half.graph.value_info.extend(value for name, value in values.items() if name in made)
    OnnxModel.graph_topological_sort(half.graph)  # the converter appends its casts at the end
    return half


def _replace(field: Any, content: Sequence[Any]) -> None:
    """Put other messages into a repeated field."""
    copies = [type(message).FromString(message.SerializeToString()) for message in content]
    del field[:]
    field.extend(copies)


def _preprocessing(proto: onnx.ModelProto) -> list[str]:
    """Names of the nodes that resize the frames, up to their rounding to whole gray levels.

    Coarser numbers would round the gray levels, and the weights of resizing, before the graph does.
    """
    producers = {name: node for node in proto.graph.node for name in node.output}
    pending, nodes = [n for n in proto.graph.node if n.op_type == "Round"], {}
    while pending:
        node = pending.pop()
        if node.name not in nodes:
            nodes[node.name] = node
            pending += [producers[name] for name in node.input if name in producers]
    return list(nodes)


def time_in_turns(
    sessions: Mapping[str, onnxruntime.InferenceSession], frames: npt.NDArray[np.uint8], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call of some sessions, which take turns within each round.

    Args:
        sessions: by name.
        frames: uint8 (N, T, H, W, 3).
        rounds: that are measured, after one that warms up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(1 + rounds):
        for name, session in sessions.items():
            call = partial(session.run, None, {INPUT: frames})
            seconds[name].append(timeit.timeit(call, number=1))
    return {name: measured[1:] for name, measured in seconds.items()}


def compare_variants(
    accuracies: Mapping[str, float],
    sizes: Mapping[str, int],
    single: Mapping[str, Sequence[float]],
    batch: Mapping[str, Sequence[float]],
    max_accuracy_drop: float,
) -> list[Variant]:
    """Keep a variant in place of float32 if it loses little accuracy and is faster.

    Args:
        accuracies: test top-1 in percent, of float32 and of the variant, by name.
        sizes: bytes of the files.
        single, batch: seconds of calls with one clip and with 4, from `time_in_turns`.
        max_accuracy_drop: points that the variant may lose.

    Returns:
        float32 and the variant; exactly one of them is kept.
    """
    [name] = accuracies.keys() - {FLOAT32}
    drop = accuracies[FLOAT32] - accuracies[name]
    speedups = np.divide(single[FLOAT32], single[name])  # round by round
    faster = float(np.quantile(speedups, 0.25)) > 1  # in three rounds of four, so not by chance
    gain = round(-drop, 2) + 0.0  # without the addition, none could be -0.00
    measured = f"{gain:+z.2f} points and {np.median(speedups):.2f} times as fast as float32"
    kept = drop <= max_accuracy_drop and faster
    if kept:
        reason = measured
    elif not faster:
        reason = f"not faster here ({measured})"
    else:
        reason = f"loses more than max_accuracy_drop={max_accuracy_drop:g} ({measured})"

    def row(name: str, kept: bool, reason: str) -> Variant:
        p50, p95 = (1000 * float(np.quantile(single[name], q)) for q in (0.5, 0.95))
        rate = _BATCH / float(np.median(batch[name]))
        size, acc1 = sizes[name] / 1e6, accuracies[name]
        return Variant(name, size, p50, p95, rate, acc1, kept, reason, cpu_name())

    return [row(FLOAT32, not kept, "" if kept else f"{name} is not kept"), row(name, kept, reason)]
