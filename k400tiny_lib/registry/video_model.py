"""Registers a video classifier for each ONNX model; its champion follows that of the ONNX model."""

from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from k400tiny_lib.errors import UserError
from k400tiny_lib.registry.promotion import CHAMPION, champion_of, make_challenger
from k400tiny_lib.registry.video_log import log_video_classifier

ONNX_VERSION_TAG = "onnx_version"


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
