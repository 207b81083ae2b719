"""The exported graph: frames in, probabilities out, with the preprocessing of evaluation inside."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from k400tiny_lib.export.rewrite_conv2d import convolve_in_2d
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input

INPUT, OUTPUT = "frames", "probabilities"


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


def preprocess(frames: Tensor, geometry: Geometry) -> Tensor:
    """Resize and crop frames to the pixels of `evaluation.views.crop_views`.

    Written with operations that export with a free height and width.

    Args:
        frames: uint8 (N, T, H, W, 3), RGB in [0, 255].
        geometry: sizes to resize to and to crop.

    Returns:
        float32 (N * T, 3, crop_size, crop_size), whole numbers in [0, 255].
    """
    height, width = frames.shape[2:4]
    images = frames.permute(0, 1, 4, 2, 3).flatten(0, 1).float()  # -> (N * T, C, H, W)
    size: list[Any] = list(geometry.resize)
    if len(size) == 1:
        short = torch.sym_min(height, width)
        size = [size[0] * height // short, size[0] * width // short]
    images = F.interpolate(images, size=size, mode="bilinear", antialias=geometry.antialias)
    # Training and evaluation resize to uint8, so the graph rounds too.
    images = images.round().clamp(0, 255)
    top, left = (center_offset(side, geometry.crop_size) for side in size)
    # The exporter gives a slice from a free offset a free size, but attention and pooling need a
    # known one.
    pixels = torch.arange(geometry.crop_size, device=images.device)
    return images.index_select(-2, pixels + top).index_select(-1, pixels + left)


def center_offset(size: Any, crop: int) -> Any:
    """First row of a center crop, halves rounded to even as in torchvision's center_crop.

    Python's round() cannot be exported for a free size, integer arithmetic can.
    """
    spare = size - crop
    return (spare + spare % 4 // 3) // 2


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
