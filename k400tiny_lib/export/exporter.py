"""From a loaded model to what gets registered: graph, parity check, variant, score, metadata."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pandas as pd
from torch import nn

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.errors import UserError
from k400tiny_lib.export import onnx_graph, parity
from k400tiny_lib.export.onnx_graph import frames_free
from k400tiny_lib.export.scoring import Calibrated, ExportClips, read_evaluation
from k400tiny_lib.export.variants import FLOAT32, Choice, choose_variant
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry, LoadedModel

SAMPLING = (
    "uniform over the video, first and last frame included; several views are shifted against one "
    "another within a stride and follow one another along T"
)


@dataclass(frozen=True)
class Exported:
    """A graph that passed the parity check, and its metadata, parity, latencies and scores.

    Attributes:
        choice: the graph, float32 or a variant, and its predictions.
        metadata: as written into the graph.
        parity: largest difference of a probability between float32 ONNX and PyTorch.
        onnx_ms, torch_ms: median latency of one clip in float32.
        clips: the data that the export used.
        not_scored: why there are no predictions.
    """

    choice: Choice
    metadata: dict[str, Any]
    parity: float
    onnx_ms: float
    torch_ms: float
    clips: ExportClips
    not_scored: str

    @property
    def summary(self) -> str:
        """Parity and latencies in words."""
        return (
            f"largest difference from PyTorch {self.parity:.1e}; {self.onnx_ms:.0f} ms a clip "
            f"(PyTorch {self.torch_ms:.0f} ms)"
        )


def export_model(
    loaded: LoadedModel,
    config: Config,
    commit: str = "",
    on_parity: Callable[[Sequence[parity.ParityCase]], None] = lambda cases: None,
    note: Callable[[str], None] = lambda text: None,
) -> Exported:
    """Export a model, require parity with PyTorch, choose the variant and score it.

    Args:
        loaded: the model.
        config: the parameters of export_onnx, with local paths in place of URIs.
        commit: for the metadata.
        on_parity: receives the parity cases before any of them is refused.
        note: receives, as they arise, lines about the export for the user.

    Raises:
        UserError: if the graph differs from PyTorch by more than the tolerance, the data cannot be
            read, or `quantize` lacks test clips.
    """
    views = config.views_in_graph
    clips = ExportClips.of_config(config, loaded.geometry.clip_len)
    not_scored = clips.reason_not_to_score(loaded.class_names)
    if not_scored and config.quantize != NONE:
        needed = f"test clips to judge {config.quantize} on"
        raise UserError(f"quantize: {not_scored}. Needed: {needed}.")
    eager = partial(parity.run_eager, loaded.model, loaded.geometry, views=views)
    calibrated = Calibrated()
    if config.evaluation != NONE and not not_scored:
        prior = read_evaluation(Path(config.evaluation), clips, eager)
        if isinstance(prior, str):
            note(f"evaluation: not used, {prior}")
        else:
            calibrated = prior
            eager = partial(eager, temperature=calibrated.temperature)
    if not calibrated.confidence_threshold:
        note("confidence_threshold: none, no answer will be marked as unknown")
    temperature, predictions = calibrated.temperature, calibrated.predictions
    added = {
        "views_in_graph": views,
        "num_frames": views * loaded.geometry.clip_len,
        "commit": commit,
    }
    metadata = describe_model(loaded) | added | calibrated.metadata

    def graph_of(model: nn.Module) -> onnx.ModelProto:
        module = onnx_graph.FramesToProbabilities(model, loaded.geometry, views, temperature)
        return onnx_graph.export_graph(module.eval(), config.opset, metadata)

    optimize = ARCHITECTURES[loaded.architecture].optimize_for_export
    proto = graph_of(optimize(loaded.model) if optimize else loaded.model)
    if views == 1 and not frames_free(proto):
        clip_len = loaded.geometry.clip_len
        note(f"frames: {loaded.architecture} exports with {clip_len} frames only")
    session, parity_clips = parity.open_session(proto), clips.for_parity()
    run = partial(parity.run_onnx, session)
    cases = parity.compare_outputs(proto, eager, loaded.geometry, parity_clips, frames_free(proto))
    on_parity(cases)
    difference = parity.require_parity(cases, config.tolerance)
    onnx_ms, torch_ms = (parity.latency_ms(predict, parity_clips[0]) for predict in (run, eager))

    if predictions is None and not not_scored:
        predictions = clips.predictions(run)
    choice = Choice(FLOAT32, proto, predictions)
    if predictions is not None and config.quantize != NONE:
        plain = graph_of(loaded.model) if optimize else proto
        most = config.max_accuracy_drop
        choice = choose_variant(config.quantize, proto, plain, predictions, clips, most)
        rows = pd.DataFrame(choice.variants)
        columns = rows.drop(columns="measured_on")
        note(columns.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
        metadata["measured_on"] = choice.variants[0].measured_on
    if choice.rejected is not None:
        _describe(choice.rejected, metadata, clips, loaded.geometry)
        note(
            f"{choice.rejected.name} is not registered; it stays as variants/"
            f"{choice.rejected.name}.onnx of this run (measured on {metadata['measured_on']})"
        )
    metadata = _describe(choice, metadata, clips, loaded.geometry)
    return Exported(choice, metadata, difference, onnx_ms, torch_ms, clips, not_scored)


def _describe(
    choice: Choice, metadata: dict[str, Any], clips: ExportClips, geometry: Geometry
) -> dict[str, Any]:
    """Add what is particular to a graph to the metadata, and write all into it."""
    quantize = NONE if choice.name == FLOAT32 else choice.name
    metadata = metadata | {"quantize": quantize, "frames_free": frames_free(choice.proto)}
    if choice.name != FLOAT32:
        kept = f"Temperature and confidence threshold are those of float32, kept for {choice.name}."
        metadata["calibration"] += f" {kept}"
    if choice.predictions is not None:
        metadata |= clips.score(choice.predictions, geometry)
    onnx_graph.describe(choice.proto, metadata)
    return metadata


def describe_model(loaded: LoadedModel) -> dict[str, Any]:
    """The facts about a model that are written into its graph.

    `resize_size` is the short side as a number, or [height, width].
    """
    geometry, architecture = loaded.geometry, ARCHITECTURES[loaded.architecture]
    return {
        "architecture": loaded.architecture,
        "class_names": loaded.class_names,
        "clip_len": geometry.clip_len,
        "sampling": SAMPLING,
        "resize_size": geometry.resize[0] if len(geometry.resize) == 1 else list(geometry.resize),
        "antialias": geometry.antialias,
        "crop_size": geometry.crop_size,
        "mean": list(architecture.mean),
        "std": list(architecture.std),
        "training_run_id": loaded.run_id or (loaded.origin if loaded.published else ""),
    }
