"""Registers a video classifier for each ONNX model; its champion follows that of the ONNX model."""

import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from k400tiny_lib.errors import UserError
from k400tiny_lib.registry.promotion import CHAMPION, champion_of, make_challenger
from k400tiny_lib.serving.video_classifier import DEFAULTS, TOP_K

LIBRARY = Path(__file__).resolve().parents[1]
ONNX_VERSION_TAG = "onnx_version"
_NAME = "video-classifier"


def register_video_classifier(onnx_uri: str, onnx_version: ModelVersion, name: str) -> ModelVersion:
    """Log and register the video classifier of an ONNX model that has just been registered.

    Args:
        onnx_uri: of the logged ONNX model; its file is copied into the new model.
        onnx_version: its version in the registry, after the decision about its promotion.
        name: of the registered video classifier, created where it does not exist.

    Returns:
        The version, with alias `challenger`, and `champion` if its ONNX model is champion.
    """
    [onnx_file] = Path(mlflow.artifacts.download_artifacts(onnx_uri)).glob("*.onnx")
    logged = log_video_classifier(onnx_file)
    tags = {ONNX_VERSION_TAG: str(onnx_version.version), "onnx_model": onnx_version.name}
    registered = mlflow.register_model(logged, name, tags=tags)
    make_challenger(name)
    follow_champion(onnx_version.name, name)
    return registered


def log_video_classifier(onnx_file: Path) -> str:
    """Log the classifier with its graph and the library to the active run; returns its URI."""
    inputs = Schema([ColSpec(DataType.string, n, required=False) for n in ("video", "path")])
    types = {"labels": DataType.string, "probabilities": DataType.double}
    outputs = Schema([ColSpec(Array(of), name) for name, of in types.items()])
    params = ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)])
    with warnings.catch_warnings():
        # MLflow asks for an example of an input, which would be a video in base64.
        warnings.simplefilter("ignore", UserWarning)
        info = mlflow.pyfunc.log_model(
            name=_NAME,
            python_model=str(LIBRARY / "serving" / "video_classifier.py"),
            artifacts={"onnx": str(onnx_file)},
            code_paths=[str(LIBRARY)],
            model_config=DEFAULTS,
            signature=ModelSignature(inputs, outputs, params),
            # Without this MLflow loads the model once more to find the requirements.
            pip_requirements=installed("mlflow", "onnxruntime", "numpy", "pandas", "av", "joblib"),
        )
    return str(info.model_uri)


def installed(*packages: str) -> list[str]:
    """Requirements that pin packages to the installed versions."""
    return [f"{package}=={version(package)}" for package in packages]


def follow_champion(onnx_name: str, name: str) -> None:
    """Give `champion` to the video classifier of the ONNX model's champion.

    The last of several exports at the same moment to call this finds both models in their final
    state.

    Raises:
        UserError: if the ONNX model has no champion.
    """
    client = MlflowClient()
    leader = champion_of(onnx_name)
    while leader is not None:
        versions = client.search_model_versions(
            f"name = '{name}' and tags.{ONNX_VERSION_TAG} = '{leader}' "
            f"and tags.onnx_model = '{onnx_name}'"
        )
        if not versions:  # another export has not registered its video classifier yet
            return
        newest = max(versions, key=lambda v: int(v.version))
        client.set_registered_model_alias(name, CHAMPION, newest.version)
        previous, leader = leader, champion_of(onnx_name)
        if leader == previous:
            return
    raise UserError(f"registered_model_name: {onnx_name} has no champion to follow.")
