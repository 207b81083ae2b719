"""Models, checkpoints, clips and graphs for the tests of the export."""

import json
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from k400tiny_lib.config import Config
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, describe, export_graph
from k400tiny_lib.export.parity import Predict
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import build_model
from tests.conftest import LABELS

CLIP_LEN, RESIZE, CROP = 4, 36, 32
GEOMETRY = Geometry(CLIP_LEN, (RESIZE,), CROP)
STATEMENT, THRESHOLD = "How it was chosen.", 0.4  # of `write_evaluation`
METADATA: dict[str, Any] = {"class_names": list(LABELS), "clip_len": CLIP_LEN}


def build(architecture: str = "r2plus1d_18") -> nn.Module:
    """The same untrained model each time."""
    torch.manual_seed(0)
    return build_model(architecture, len(LABELS)).eval()


def graph_of(model: nn.Module) -> bytes:
    """The serialized graph of a model, with free T."""
    module = FramesToProbabilities(model, GEOMETRY).eval()
    serialized: bytes = export_graph(module, 18, METADATA).SerializeToString()
    return serialized


def disturb(model: nn.Module) -> nn.Module:
    """Change every weight by a hundredth, on average."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 1 + 0.01 * torch.randn(parameter.shape, generator=generator)
    return model


def write_best(path: Path, model: nn.Module, architecture: str = "r2plus1d_18") -> Path:
    """A best.pt of a model."""
    config = Config(model=architecture, clip_len=CLIP_LEN, resize_size=RESIZE, crop_size=CROP)
    content = {
        "model": model.state_dict(),
        "epoch": 1,
        "config": config.to_dict(),
        "categories": {label: index for index, label in enumerate(LABELS)},
        "run_id": "",
    }
    torch.save(content, path)
    return path


def write_evaluation(
    folder: Path, clips: ExportClips, predict: Predict, temperature: float
) -> None:
    """The files of an evaluation of the test clips that export_onnx reads."""
    folder.mkdir()
    clips.predictions(predict).to_csv(folder / "predictions.csv", index=False)
    calibration = {"temperature": temperature, "applied": True, "statement": STATEMENT}
    calibration["confidence_threshold"] = THRESHOLD
    (folder / "calibration.json").write_text(json.dumps(calibration))


def clips(count: int, height: int = 48, width: int = 64, frames: int = CLIP_LEN) -> list[Tensor]:
    """Clips of noise, uint8 (T, H, W, 3)."""
    generator = torch.Generator().manual_seed(1)
    shape = (frames, height, width, 3)
    return [
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)
    ]


def toy_graph() -> onnx.ModelProto:
    """Frames to probabilities of three classes, without a network: the brightest channel wins."""
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, ["n", "t", "h", "w", 3])
    output = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", 3])
    nodes = [
        helper.make_node("Cast", ["frames"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Softmax", ["mean"], ["probabilities"], axis=1),
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3])
    graph = helper.make_graph(nodes, "toy", [frames], [output], [axes])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    describe(proto, METADATA)
    return proto
