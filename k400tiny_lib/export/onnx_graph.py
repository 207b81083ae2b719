"""The exported graph: raw frames in, probabilities out, preprocessing inside."""

import contextlib
import io
import json
import logging
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnxscript.ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from k400tiny_lib.export.rewrite_conv2d import convolve_in_2d
from k400tiny_lib.export.row_packing import on_sheets
from k400tiny_lib.models.weights import model_input

INPUT, OUTPUT = "frames", "probabilities"


class FramesToProbabilities(nn.Module):
    """A classifier together with the transform of its evaluation.

    The same arithmetic as `data.transforms.resize_exactly`, written with operations that export
    with free height and width.

    Attributes:
        model: from float32 (N, C, T, H, W) to logits (N, K).
        resize_size, crop_size: short side after resizing and side of the centre crop, in pixels.
        views: temporal views of a video whose probabilities are averaged; they follow one another
            along T.
        temperature: that the averaged probabilities are calibrated with; 1 leaves them.
    """

    def __init__(
        self,
        model: nn.Module,
        resize_size: int,
        crop_size: int,
        views: int = 1,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.resize_size = resize_size
        self.crop_size = crop_size
        self.views = views
        self.temperature = temperature

    def forward(self, frames: Tensor) -> Tensor:
        """Classify videos.

        Args:
            frames: uint8 (N, views * T, H, W, 3), RGB in [0, 255].

        Returns:
            float32 (N, num_classes), each row summing to 1.
        """
        num_videos, num_frames, height, width, _ = frames.shape
        images = frames.permute(0, 1, 4, 2, 3).flatten(0, 1).float()  # -> (N * V * T, C, H, W)
        short = torch.sym_min(height, width)
        size: list[Any] = [self.resize_size * height // short, self.resize_size * width // short]
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        # Training and evaluation see uint8 after resizing, and so does the graph.
        images = images.round().clamp(0, 255)
        top, left = _centre_offset(size[0], self.crop_size), _centre_offset(size[1], self.crop_size)
        # A slice from a free place has a free size for the exporter, and attention and pooling
        # need to know it.
        places = torch.arange(self.crop_size, device=images.device)
        images = images.index_select(-2, places + top).index_select(-1, places + left)
        clips = images.unflatten(0, (num_videos * self.views, num_frames // self.views))
        clips = clips.transpose(1, 2)  # -> (N * V, C, T, H, W)
        logits: Tensor = self.model(model_input(self.model, clips))
        if self.views > 1:
            by_view = logits.log_softmax(1).unflatten(0, (num_videos, self.views))
            # The logarithm of the mean but for a constant, which softmax drops.
            logits = by_view.logsumexp(1)
        return (logits / self.temperature).softmax(1)


def _centre_offset(size: Any, crop: int) -> Any:
    """First row of a centre crop, halves rounded to even like torchvision's center_crop.

    Python's round() cannot be exported for a free size, integer arithmetic can.
    """
    spare = size - crop
    return (spare + spare % 4 // 3) // 2


def export_graph(
    module: FramesToProbabilities,
    clip_len: int,
    opset: int,
    metadata: Mapping[str, Any],
    sheets: bool = True,
) -> onnx.ModelProto:
    """Export to ONNX with free batch, height and width, and free T where the architecture can.

    T stays fixed at views * clip_len for several views, and where the exporter or the network
    needs it known; `frames_free` of the metadata says which.

    Args:
        module: in evaluation mode, on the CPU.
        clip_len: frames of a view.
        opset: of the graph.
        metadata: what a user of the file needs to know; see `describe`.
        sheets: whether to compute on sheets what can be; it is fast, and for float32 only.

    Returns:
        The checked graph.

    Raises:
        onnx.checker.ValidationError: if the exporter's graph is not valid ONNX.
    """
    proto = None
    if sheets:
        module = FramesToProbabilities(
            on_sheets(module.model),
            module.resize_size,
            module.crop_size,
            module.views,
            module.temperature,
        ).eval()
    if module.views == 1 and _takes_more_frames(module, clip_len):
        with contextlib.suppress(torch.onnx.OnnxExporterError):
            proto = _export(module, clip_len, opset, free_frames=True)
    proto = convolve_in_2d(proto or _export(module, clip_len, opset, free_frames=False))
    describe(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)  # with shape inference
    return proto


@torch.inference_mode()
def _takes_more_frames(module: FramesToProbabilities, clip_len: int) -> bool:
    """Whether the network works on longer clips: one with learned positions in time does not."""
    num_frames = clip_len + max(1, clip_len // 2)
    side = module.resize_size
    try:
        module(torch.zeros((1, num_frames, side, side, 3), dtype=torch.uint8))
    except (RuntimeError, ValueError, AssertionError):
        return False
    return True


def _export(
    module: FramesToProbabilities, clip_len: int, opset: int, free_frames: bool
) -> onnx.ModelProto:
    free = torch.export.Dim.DYNAMIC
    side = max(module.resize_size + 9, 64)
    # A batch of one would be taken for a constant (pytorch#148886), equal sides for one size.
    shape = (2, module.views * clip_len, side, side + 16, 3)
    axes = {0: free, 2: free, 3: free} | ({1: free} if free_frames else {})
    with _quiet(), tempfile.TemporaryDirectory() as folder:
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
        # The exporter notes the lines of code behind each node, with the paths of this machine.
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
    """Write the metadata into a graph, as JSON values by name, and whether T is free."""
    values = {**metadata, "frames_free": frames_free(proto)}
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in values.items()})


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress lines and deprecation warnings off the console."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
