"""One runtime, one model: the probabilities of some clips. Needs NumPy and the runtime alone.

    python benchmarks/runtime_side.py onnxruntime|openvino|opencv model.onnx clips.npz answers.npy

Prints the version. A script of its own, so that each runtime can be in an environment of its own.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Answer = Callable[[npt.NDArray[np.uint8]], Any]


def _onnxruntime(path: str) -> tuple[str, Answer]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return onnxruntime.__version__, lambda frames: session.run(None, {"frames": frames})[0]


def _openvino(path: str) -> tuple[str, Answer]:
    import openvino  # type: ignore[import-not-found,unused-ignore]

    # On a CPU that multiplies bf16, OpenVINO would round the gray levels to 8 binary digits.
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", options)
    return openvino.__version__, lambda frames: model([frames])[0]


def _opencv(path: str) -> tuple[str, Answer]:
    import cv2

    network = cv2.dnn.readNetFromONNX(path)

    def answer(frames: npt.NDArray[np.uint8]) -> Any:
        network.setInput(frames, "frames")
        return network.forward()

    return cv2.__version__, answer


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino, "opencv": _opencv}


def main(runtime: str, model: str, clips: str, answers: str) -> None:
    """Answer each clip, uint8 (T, H, W, 3), by itself."""
    version, answer = RUNTIMES[runtime](model)
    print(version)
    with np.load(clips) as stored:
        rows = [np.array(answer(stored[name][None]))[0] for name in stored.files]
    np.save(answers, np.stack(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
