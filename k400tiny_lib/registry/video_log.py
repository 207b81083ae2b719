"""Logs the served video classifier: its code, graph, signature, classes and an example."""

import base64
import io
from importlib.metadata import version
from pathlib import Path
from typing import Any

import av
import mlflow
import numpy as np
import onnx
import pandas as pd
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from k400tiny_lib.serving.serving_config import DEFAULTS
from k400tiny_lib.serving.video_classifier import COLUMNS, TOP_K

LIBRARY = Path(__file__).resolve().parents[1]
_NAME = "video-classifier"
_MODEL_CODE = "served_model.py"
_PYFUNC = "python_function"
_EXAMPLE_FRAMES, _EXAMPLE_SIDE = 16, 64


def log_video_classifier(onnx_file: Path) -> str:
    """Log the classifier with its graph and the library to the active run; returns its URI."""
    inputs = Schema([ColSpec(DataType.string, n, required=False) for n in ("video", "path")])
    types: tuple[Any, ...] = (
        Array(DataType.string),
        Array(DataType.double),
        DataType.boolean,
        DataType.string,
    )
    outputs = Schema([ColSpec(of, name) for of, name in zip(types, COLUMNS, strict=True)])
    params = ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)])
    facts = onnx.load(onnx_file, load_external_data=False).metadata_props
    info = Model.log(
        artifact_path=None,
        name=_NAME,
        flavor=_WithoutPaths,
        python_model=str(LIBRARY / "serving" / _MODEL_CODE),
        artifacts={"onnx": str(onnx_file)},
        code_paths=[str(LIBRARY)],
        model_config=DEFAULTS,
        signature=ModelSignature(inputs, outputs, params),
        input_example=(pd.DataFrame({"video": [example_video()]}), {"top_k": TOP_K}),
        metadata={fact.key: fact.value for fact in facts},
        # Without this MLflow loads the model once more to find the requirements.
        pip_requirements=installed("mlflow", "onnxruntime", "numpy", "pandas", "av", "joblib"),
    )
    return str(info.model_uri)


def installed(*packages: str) -> list[str]:
    """Requirements that pin packages to the installed versions."""
    return [f"{package}=={version(package)}" for package in packages]


def example_video() -> str:
    """A video of a light square that slides over a dark one, in base64 (about 3 kB)."""
    content = io.BytesIO()
    with av.open(content, "w", format="mp4") as container:
        stream: Any = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = _EXAMPLE_SIDE
        stream.pix_fmt = "yuv420p"
        for number in range(_EXAMPLE_FRAMES):
            picture = np.full((_EXAMPLE_SIDE, _EXAMPLE_SIDE, 3), 40, np.uint8)
            picture[24:40, 3 * number : 3 * number + 16] = 200
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return base64.b64encode(content.getvalue()).decode()


class _WithoutPaths:
    """MLflow's flavor for Python models, without the directories of this machine in its files."""

    @staticmethod
    def save_model(path: str, mlflow_model: Model, **kwargs: Any) -> None:
        """Save as `mlflow.pyfunc.save_model`, which writes where everything came from."""
        mlflow.pyfunc.save_model(path, mlflow_model=mlflow_model, **kwargs)
        conf = mlflow_model.flavors[_PYFUNC]
        conf["model_code_path"] = _MODEL_CODE
        for artifact in conf["artifacts"].values():
            artifact["uri"] = artifact["path"]
        mlflow_model.artifact_path = _NAME
        mlflow_model.save(str(Path(path) / "MLmodel"))
