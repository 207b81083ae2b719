"""The exported graph: frames in, probabilities out, with the preprocessing of evaluation inside."""

import contextlib
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from k400tiny_lib.export.resizing import preprocess
from k400tiny_lib.export.rewrite_conv2d import convolve_in_2d
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

INPUT, OUTPUT = "frames", "probabilities"
_WORD, _EXPORTERS_NAME = re.compile(r"[A-Za-z_]\w*"), re.compile(r"\b[su]\d+\b|unk__")
_LONGEST_EXPRESSION = 24  # characters


class FramesToProbabilities(nn.Module):
    """A classifier together with the preprocessing and the averaging of its evaluation.

    Attributes:
        model: from `build_model`.
        geometry: frames of a view, and how its pixels are resized and cropped.
        views: temporal views of a video, one after the other along T; their probabilities are
            averaged.
        temperature: calibrates the averaged probabilities; 1 leaves them unchanged.
    """

    def __init__(
        self, model: nn.Module, geometry: Geometry, views: int = 1, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.model = model
        self.geometry = geometry
        self.views = views
        self.temperature = temperature

    def forward(self, frames: Tensor) -> Tensor:
        """Classify videos.

        Args:
            frames: uint8 (N, views * T, H, W, 3), RGB in [0, 255].

        Returns:
            float32 (N, num_classes), each row summing to 1.
        """
        num_videos, num_frames = frames.shape[:2]
        clips = preprocess(frames, self.geometry)
        clips = clips.unflatten(0, (num_videos * self.views, num_frames // self.views))
        clips = clips.transpose(1, 2)  # (N * V, T, C, H, W) -> (N * V, C, T, H, W)
        logits: Tensor = self.model(model_input(self.model, clips))
        if self.views > 1:
            by_view = logits.log_softmax(1).unflatten(0, (num_videos, self.views))
            # The logarithm of the mean up to a constant, which softmax drops.
            logits = by_view.logsumexp(1)
        return (logits / self.temperature).softmax(1)


def export_graph(
    module: FramesToProbabilities, opset: int, metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Export to ONNX with free batch, height and width, and with free T where the model allows it.

    T is fixed at views * clip_len for several views, and where the exporter or the network needs a
    known T; `frames_free` of the metadata says which.

    Args:
        module: in evaluation mode, on the CPU.
        opset: of the graph.
        metadata: facts about the model for users of the file; see `describe`.

    Returns:
        The checked graph.

    Raises:
        onnx.checker.ValidationError: if the exporter's graph is not valid ONNX.
    """
    proto = None
    if module.views == 1 and _takes_longer_clips(module):
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            proto = _export(module, opset, free_frames=True)
    proto = convolve_in_2d(proto or _export(module, opset, free_frames=False))
    name_axes(proto)
    require_oldest_format(proto)
    describe(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)  # with shape inference
    return proto


@torch.inference_mode()
def _takes_longer_clips(module: FramesToProbabilities) -> bool:
    """Whether the network runs on longer clips; one with learned temporal positions does not."""
    clip_len, side = module.geometry.clip_len, max(module.geometry.resize)
    num_frames = clip_len + max(1, clip_len // 2)
    try:
        module(torch.zeros((1, num_frames, side, side, 3), dtype=torch.uint8))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _export(module: FramesToProbabilities, opset: int, free_frames: bool) -> onnx.ModelProto:
    free = torch.export.Dim.DYNAMIC
    side = max(*module.geometry.resize, 55) + 9
    # The exporter takes a batch of one for a constant (pytorch#148886), and equal sides for one
    # size.
    shape = (2, module.views * module.geometry.clip_len, side, side + 16, 3)
    axes = {0: free, 2: free, 3: free} | ({1: free} if free_frames else {})
    with quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module,
            (torch.randint(0, 256, shape, dtype=torch.uint8),),
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=(axes,),
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        # The exporter stores stack traces with the paths of this machine in every node.
        ClearMetadataAndDocStringPass()(program.model)
        for value in (*program.model.graph.inputs, *program.model.graph.outputs):
            value.metadata_props.clear()
        path = Path(folder) / "model.onnx"
        program.save(str(path), external_data=False)
        return onnx.load(path)


def name_axes(proto: onnx.ModelProto) -> None:
    """Call the free axes of a graph N, T, H and W, in place of the exporter's s41, s45 ..."""
    [frames], [probabilities] = proto.graph.input, proto.graph.output
    names = {
        dim.dim_param: name
        for dim, name in zip(frames.type.tensor_type.shape.dim, "NTHW", strict=False)
        if dim.dim_param
    }
    for value in (frames, probabilities, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if not dim.dim_param:
                continue
            name = _WORD.sub(lambda word: names.get(word[0], word[0]), dim.dim_param)
            # An expression of the window's size helps nobody: hundreds of characters.
            if len(name) > _LONGEST_EXPRESSION or _EXPORTERS_NAME.search(name):
                dim.Clear()
            else:
                dim.dim_param = name


def require_oldest_format(proto: onnx.ModelProto) -> None:
    """Set the lowest IR version that the opset allows: runtimes refuse later ones than they know.

    The exporter writes IR version 10 whatever the opset, which ONNX Runtime 1.17 refuses. Domains
    that no node is of are left out: ONNX Runtime's tools add all of its own.
    """
    domains = {node.domain for node in proto.graph.node} | {""}
    opsets = [opset for opset in proto.opset_import if opset.domain in domains]
    del proto.opset_import[:]
    proto.opset_import.extend(opsets)
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)


def frames_free(proto: onnx.ModelProto) -> bool:
    """Whether a graph takes any number of frames."""
    return not proto.graph.input[0].type.tensor_type.shape.dim[1].HasField("dim_value")


def describe(proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> None:
    """Write the metadata into a graph as JSON values by name, and `frames_free` with them."""
    values = {**metadata, "frames_free": frames_free(proto)}
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in values.items()})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress lines, warnings and advice of the export's tools off the console."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
