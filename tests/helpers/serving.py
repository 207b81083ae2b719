"""A network of a few weights, exported and registered like the real ones."""

from pathlib import Path

import mlflow
import onnx
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from torch import Tensor, nn

from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.registry.registry import log_onnx

CLIP_LEN, CLASSES = 4, ["sliding", "growing", "turning"]
GEOMETRY = Geometry(CLIP_LEN, (36,), 32)
METADATA = {"class_names": CLASSES, "clip_len": CLIP_LEN}
NAME, VIDEO_NAME = "tiny", "tiny-video"


class TinyNetwork(nn.Module):
    """Clips (N, 3, T, H, W) of one T to logits (N, 3) that change with every pixel and frame."""

    architecture = "r2plus1d_18"  # for the mean and deviation of its pixels

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Conv3d(3, 4, (2, 3, 3), stride=(1, 4, 4))
        self.head = nn.Linear(4 * (CLIP_LEN - 1), len(CLASSES))

    def forward(self, clips: Tensor) -> Tensor:
        logits: Tensor = 5 * self.head(self.features(clips).relu().mean((3, 4)).flatten(1))
        return logits


def export_tiny(path: Path) -> Path:
    """Write the network as an .onnx file."""
    module = FramesToProbabilities(TinyNetwork(), GEOMETRY).eval()
    path.write_bytes(export_graph(module, 18, METADATA).SerializeToString())
    return path


def register_tiny(onnx_file: Path) -> tuple[str, ModelVersion]:
    """Log and register it as champion; returns (model URI, version)."""
    uri = log_onnx(onnx.load(onnx_file), METADATA)
    version = mlflow.register_model(uri, NAME)
    MlflowClient().set_registered_model_alias(NAME, "champion", version.version)
    return uri, version
