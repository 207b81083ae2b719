"""Registers the video classifier beside each ONNX model, and lets its champion follow."""

import warnings
from importlib.metadata import version
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from k400tiny_lib.errors import UserError
from k400tiny_lib.serving.video_classifier import DEFAULTS, TOP_K

LIBRARY = Path(__file__).resolve().parents[1]
ONNX_VERSION_TAG = "onnx_version"
_CHAMPION, _CHALLENGER = "champion", "challenger"
_NAME = "video-classifier"


def register_video_classifier(onnx_uri: str, onnx_version: ModelVersion, name: str) -> ModelVersion:
    """Log and register the video classifier of an ONNX model that has just been registered.

    Args:
        onnx_uri: of the logged ONNX model, whose file goes into the new one.
        onnx_version: its version in the registry; promotion has been decided.
        name: of the registered video classifier, created where it does not exist.

    Returns:
        The version, with alias `challenger`, and `champion` if the ONNX model's champion is its
        own.
    """
    [onnx_file] = Path(mlflow.artifacts.download_artifacts(onnx_uri)).glob("*.onnx")
    logged = log_video_classifier(onnx_file)
    tags = {ONNX_VERSION_TAG: str(onnx_version.version), "onnx_model": onnx_version.name}
    registered = mlflow.register_model(logged, name, tags=tags)
    MlflowClient().set_registered_model_alias(name, _CHALLENGER, registered.version)
    follow_champion(onnx_version.name, name)
    return registered


def log_video_classifier(onnx_file: Path) -> str:
    """Log the classifier with its graph and the library to the active run; returns its URI."""
    with warnings.catch_warnings():
        # About the example of an input, which would be a video in base64.
        warnings.simplefilter("ignore", UserWarning)
        info = _log(onnx_file)
    return str(info.model_uri)


def _log(onnx_file: Path) -> ModelInfo:
    info: ModelInfo = mlflow.pyfunc.log_model(
        name=_NAME,
        python_model=str(LIBRARY / "serving" / "video_classifier.py"),
        artifacts={"onnx": str(onnx_file)},
        code_paths=[str(LIBRARY)],
        model_config=DEFAULTS,
        signature=ModelSignature(
            inputs=Schema(
                [
                    ColSpec(DataType.string, "video", required=False),
                    ColSpec(DataType.string, "path", required=False),
                ]
            ),
            outputs=Schema(
                [
                    ColSpec(Array(DataType.string), "labels"),
                    ColSpec(Array(DataType.double), "probabilities"),
                ]
            ),
            params=ParamSchema([ParamSpec("top_k", DataType.long, TOP_K)]),
        ),
        # Named here: otherwise mlflow loads the model once more to find out.
        pip_requirements=[
            f"{package}=={version(package)}"
            for package in ("mlflow", "onnxruntime", "numpy", "pandas", "av")
        ],
    )
    return info


def follow_champion(onnx_name: str, name: str) -> None:
    """Give `champion` to the video classifier of the ONNX model's champion.

    Of exports at the same moment the last one to call this finds both models in their final state.
    """
    client = MlflowClient()
    while True:
        leader = _champion_version(onnx_name)
        found = client.search_model_versions(
            f"name = '{name}' and tags.{ONNX_VERSION_TAG} = '{leader}' "
            f"and tags.onnx_model = '{onnx_name}'"
        )
        if not found:  # an export beside this one has not registered its own yet
            return
        newest = max(found, key=lambda v: int(v.version))
        client.set_registered_model_alias(name, _CHAMPION, newest.version)
        if _champion_version(onnx_name) == leader:
            return


def _champion_version(name: str) -> str:
    try:
        return str(MlflowClient().get_model_version_by_alias(name, _CHAMPION).version)
    except MlflowException:
        raise UserError(f"registered_model_name: {name} has no champion to follow.") from None
