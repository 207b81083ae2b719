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
from torch import Tensor, nn

from k400tiny_lib.model import model_input

INPUT, OUTPUT = "frames", "probabilities"


class FramesToProbabilities(nn.Module):
    """A classifier together with the transform of its evaluation.

    The same arithmetic as `data.transforms.resize_exactly`, written with operations that export
    with free height and width.
    """

    def __init__(self, model: nn.Module, resize_size: int, crop_size: int) -> None:
        super().__init__()
        self.model = model
        self.resize_size = resize_size
        self.crop_size = crop_size

    def forward(self, frames: Tensor) -> Tensor:
        """Classify clips.

        Args:
            frames: uint8 (N, T, H, W, 3), RGB in [0, 255].

        Returns:
            float32 (N, num_classes), each row summing to 1.
        """
        num_clips, _, height, width, _ = frames.shape
        images = frames.permute(0, 1, 4, 2, 3).flatten(0, 1).float()  # -> (N * T, C, H, W)
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
        clips = images.unflatten(0, (num_clips, -1)).transpose(1, 2)  # -> (N, C, T, H, W)
        probabilities: Tensor = self.model(model_input(self.model, clips)).softmax(1)
        return probabilities


def _centre_offset(size: Any, crop: int) -> Any:
    """First row of a centre crop, halves rounded to even like torchvision's center_crop.

    Python's round() cannot be exported for a free size, integer arithmetic can.
    """
    spare = size - crop
    return (spare + spare % 4 // 3) // 2


def export_graph(
    module: FramesToProbabilities, clip_len: int, opset: int, metadata: Mapping[str, Any]
) -> onnx.ModelProto:
    """Export to ONNX with free batch, height and width.

    Args:
        module: in evaluation mode, on the CPU.
        clip_len: T, fixed in the graph.
        opset: of the graph.
        metadata: what a user of the file needs to know; kept as JSON values by name.

    Returns:
        The checked graph.

    Raises:
        onnx.checker.ValidationError: if the exporter's graph is not valid ONNX.
    """
    free = torch.export.Dim.DYNAMIC
    side = max(module.resize_size + 9, 64)
    # A batch of one would be taken for a constant (pytorch#148886), equal sides for one size.
    example = torch.randint(0, 256, (2, clip_len, side, side + 16, 3), dtype=torch.uint8)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            module, (example,), dynamo=True, opset_version=opset,
            input_names=[INPUT], output_names=[OUTPUT],
            dynamic_shapes=({0: free, 2: free, 3: free},),
        )  # fmt: skip
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        path = Path(folder) / "model.onnx"
        program.save(str(path), external_data=False)
        proto = onnx.load(path)
    onnx.helper.set_model_props(proto, {key: json.dumps(value) for key, value in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress lines and deprecation warnings off the console."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
