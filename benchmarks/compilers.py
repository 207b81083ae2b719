"""The model alone, frames to probabilities: ONNX Runtime, OpenVINO and torch.compile in turns."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch

from benchmarks.common import in_turns, markdown
from k400tiny_lib.errors import one_line
from k400tiny_lib.evaluation.views import crop_views
from k400tiny_lib.export.onnx_graph import FramesToProbabilities
from k400tiny_lib.export.parity import open_session
from k400tiny_lib.models.conv2d import to_fast_layout
from k400tiny_lib.models.loaded import LoadedModel
from k400tiny_lib.models.weights import build_model
from k400tiny_lib.serving.predict import read_clip
from k400tiny_lib.system import available_cores

_OURS = "ONNX Runtime, float32"


def compilers_report(
    files: Mapping[str, Path], loaded: LoadedModel, folder: Path, rounds: int
) -> str:
    """Time one clip on every side that can be used here; returns the text about it.

    Args:
        files: our graphs, `float32` and `int8`.
        loaded: the model of these graphs.
        folder: a frame folder.
        rounds: of which medians are taken.
    """
    frames = read_clip(folder, loaded.geometry.clip_len).frames[None]
    sessions = {name: open_session(onnx.load(path)) for name, path in files.items()}
    calls: dict[str, Callable[[], Any]] = {
        f"ONNX Runtime, {name}": partial(session.run, None, {"frames": frames})
        for name, session in sessions.items()
    }
    skipped = []
    for add in (_openvino, _compiled):
        try:
            calls |= add(files, loaded, frames)
        except Exception as error:  # not installed, no compiler of C++, another CPU
            skipped.append(f"{add.__name__.strip('_')}: skipped, {one_line(error)}")
    ms = in_turns({name: partial(_milliseconds, call) for name, call in calls.items()}, rounds)
    rows = [(name, f"{value:.0f}", f"{ms[_OURS] / value:.2f}") for name, value in ms.items()]
    return "\n\n".join(
        [
            "## The model alone, from the frames of one clip to probabilities",
            markdown(("", "ms", "x ONNX Runtime, float32"), rows),
            *skipped,
        ]
    )


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def _openvino(
    files: Mapping[str, Path], loaded: LoadedModel, frames: np.ndarray[Any, Any]
) -> dict[str, Callable[[], Any]]:
    import openvino  # type: ignore[import-not-found,unused-ignore]

    sides = {"float32": ("float32", "f32"), "bf16": ("float32", "bf16"), "int8": ("int8", "f32")}
    calls: dict[str, Callable[[], Any]] = {}
    for name, (graph, precision) in sides.items():
        options = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": available_cores(),
        }
        model = openvino.Core().compile_model(str(files[graph]), "CPU", options)
        calls[f"OpenVINO {version('openvino')}, {name}"] = partial(model, [frames])
    return calls


def _compiled(
    files: Mapping[str, Path], loaded: LoadedModel, frames: np.ndarray[Any, Any]
) -> dict[str, Callable[[], Any]]:
    copy = build_model(loaded.architecture, len(loaded.class_names)).eval()
    copy.load_state_dict(loaded.model.state_dict())
    fast = to_fast_layout(copy, torch.device("cpu"), channels_last=True)
    module = torch.compile(FramesToProbabilities(fast, loaded.geometry).eval())
    [clip] = torch.from_numpy(frames)

    @torch.inference_mode()
    def call() -> None:
        [crop] = crop_views(clip, loaded.geometry, 1)
        module(crop.transpose(0, 1).float()[None])

    call()  # compiles, or says why it cannot
    return {f"torch.compile {torch.__version__}, float32": call}
