"""The same file in other runtimes; skipped where they are not installed.

`K400TINY_RUNTIMES` names the interpreters of environments with more of them, divided by colons;
onnxruntime-node is looked for in the folder `K400TINY_NODE_MODULES`.
"""

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from benchmarks.runtimes import Clips, answer, answer_in_node, compare
from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.onnx_graph import FramesToProbabilities, export_graph
from k400tiny_lib.export.parity import run_eager
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.models.loaded import Geometry
from k400tiny_lib.models.weights import model_input
from tests.helpers.export import METADATA, build

pytestmark = pytest.mark.slow

PYTHONS = [sys.executable, *filter(None, os.environ.get("K400TINY_RUNTIMES", "").split(":"))]
NODE_MODULES = Path(os.environ.get("K400TINY_NODE_MODULES", "node_modules"))
GEOMETRY = Geometry(4, (64,), 56)
SIZES = [(240, 320), (320, 240), (97, 131), (40, 30), (8, 400), (400, 8), (720, 1280)]
# Probabilities. Runtimes sum in other orders, which moves a pixel on the edge of two gray levels.
TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def clips() -> Clips:
    rng = np.random.default_rng(0)
    shape = (GEOMETRY.clip_len, 1, 1, 3)
    return [rng.integers(0, 256, (*shape[:1], *size, 3), dtype=np.uint8) for size in SIZES]


@pytest.fixture(scope="module")
def model(clips: Clips) -> torch.nn.Module:
    """R(2+1)D-18 whose answers differ from clip to clip, as those of a trained one do."""
    model = build()
    pictures = [crop_views(torch.from_numpy(clip), GEOMETRY, 1)[0] for clip in clips]
    with torch.no_grad():
        logits = model(model_input(model, torch.stack(pictures)))
        model.fc.weight /= logits.std(0).max() / 2
        model.fc.bias -= model(model_input(model, torch.stack(pictures))).mean(0)
    return model


@pytest.fixture(scope="module")
def expected(model: torch.nn.Module, clips: Clips) -> np.ndarray:
    rows = [run_eager(model, GEOMETRY, torch.from_numpy(clip)[None])[0] for clip in clips]
    answers = np.stack(rows)
    # A runtime that ignores antialiasing must be seen.
    sharp = Geometry(4, (64,), 56, antialias=False)
    wrong = [run_eager(model, sharp, torch.from_numpy(clip)[None])[0] for clip in clips]
    assert np.abs(np.stack(wrong) - answers).max() > 20 * TOLERANCE
    return answers


@pytest.fixture(scope="module")
def path(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    optimize = ARCHITECTURES["r2plus1d_18"].optimize_for_export
    assert optimize is not None
    module = FramesToProbabilities(optimize(model), GEOMETRY).eval()
    file = tmp_path_factory.mktemp("runtimes") / "model.onnx"
    onnx.save(export_graph(module, 18, METADATA), file)
    return file


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "opencv"])
def test_other_runtimes_answer_like_pytorch(
    runtime: str, python: str, path: Path, clips: Clips, expected: np.ndarray
) -> None:
    answered = answer(runtime, python, path, clips)
    if answered is None:
        pytest.skip(f"{runtime} is not installed in {python}")
    same, difference = compare(answered[1], expected)
    assert (same, difference < TOLERANCE) == (100, True), (answered[0], difference)


@pytest.mark.skipif(
    not (NODE_MODULES / "onnxruntime-node").is_dir() or shutil.which("node") is None,
    reason="onnxruntime-node is not installed",
)
def test_onnxruntime_node_answers_like_pytorch(
    path: Path, clips: Clips, expected: np.ndarray
) -> None:
    _, answers = answer_in_node(NODE_MODULES, path, clips)
    same, difference = compare(answers, expected)
    assert (same, difference < TOLERANCE) == (100, True), difference
