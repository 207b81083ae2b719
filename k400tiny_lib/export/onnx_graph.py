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

from k400tiny_lib.export.resizing import resizing_graph
from k400tiny_lib.export.rewrite_conv2d import convolve_in_2d
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

INPUT, OUTPUT = "frames", "probabilities"
PICTURES = "pictures"  # between the resizing and the network
_WORD = re.compile(r"[A-Za-z_]\w*")


class FramesToProbabilities(nn.Module):
    """A classifier with the normalization and the averaging of its evaluation.

    `export_graph` puts the resizing in front of it.

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

    def forward(self, pictures: Tensor) -> Tensor:
        """Classify videos whose frames are resized and cropped.

        Args:
            pictures: float32 (N, views * T, 3, crop_size, crop_size), RGB, whole numbers in
                [0, 255].

        Returns:
            float32 (N, num_classes), each row summing to 1.
        """
        num_videos, num_frames = pictures.shape[:2]
        clips = pictures.flatten(0, 1)
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
    proto = _with_resizing(proto, module.geometry)
    require_oldest_format(proto)
    describe(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)  # with shape inference
    return proto


@torch.inference_mode()
def _takes_longer_clips(module: FramesToProbabilities) -> bool:
    """Whether the network runs on longer clips; one with learned temporal positions does not."""
    clip_len, side = module.geometry.clip_len, module.geometry.crop_size
    num_frames = clip_len + max(1, clip_len // 2)
    try:
        module(torch.zeros((1, num_frames, 3, side, side)))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _export(module: FramesToProbabilities, opset: int, free_frames: bool) -> onnx.ModelProto:
    free, side = torch.export.Dim.DYNAMIC, module.geometry.crop_size
    # The exporter takes a batch of one for a constant (pytorch#148886).
    shape = (2, module.views * module.geometry.clip_len, 3, side, side)
    axes = {0: free} | ({1: free} if free_frames else {})
    with quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module,
            (torch.randint(0, 256, shape).float(),),
            dynamo=True,
            opset_version=opset,
            input_names=[PICTURES],
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
    """Call the free axes of a graph N and T, in place of the exporter's s41 and s45."""
    [pictures], [probabilities] = proto.graph.input, proto.graph.output
    names = {
        dim.dim_param: name
        for dim, name in zip(pictures.type.tensor_type.shape.dim, "NT", strict=False)
        if dim.dim_param
    }
    for value in (pictures, probabilities, *proto.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:  # a name, or an expression like s41*s45
                name = _WORD.sub(lambda word: names.get(word[0], word[0]), dim.dim_param)
                dim.dim_param = name


def require_oldest_format(proto: onnx.ModelProto) -> None:
    """Set the lowest IR version that the opset allows: runtimes refuse later ones than they know.

    The exporter writes IR version 10 whatever the opset, which ONNX Runtime 1.17 refuses. A
    domain is listed once, and if a node is of it: ONNX Runtime's tools add all of its own.
    """
    used = {node.domain for node in proto.graph.node}
    versions = {o.domain: o.version for o in proto.opset_import if o.domain in used}
    del proto.opset_import[:]
    proto.opset_import.extend(onnx.helper.make_opsetid(*item) for item in versions.items())
    proto.ir_version = onnx.helper.find_min_ir_version_for(proto.opset_import, ignore_unknown=True)


def _with_resizing(proto: onnx.ModelProto, geometry: Geometry) -> onnx.ModelProto:
    """Put the resizing in front of a network that takes pictures."""
    [pictures] = proto.graph.input
    graph = resizing_graph(INPUT, PICTURES, geometry)
    opsets, version = proto.opset_import, proto.ir_version
    resizing = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=version)
    # The network may have a known T.
    sizes = pictures.type.tensor_type.shape.dim
    for value in (*resizing.graph.input, *resizing.graph.output):
        value.type.tensor_type.shape.dim[1].CopyFrom(sizes[1])
    io_map = [(PICTURES, PICTURES)]
    merged: onnx.ModelProto = onnx.compose.merge_models(resizing, proto, io_map, name="k400tiny")
    merged.producer_name, merged.producer_version = proto.producer_name, proto.producer_version
    return merged


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
