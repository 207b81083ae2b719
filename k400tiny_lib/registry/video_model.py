"""Registers a video classifier for each ONNX model; its champion follows that of the ONNX model.

The two versions of one export are called siblings: the video classifier holds a copy of the graph.
"""

import json

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model

from k400tiny_lib.errors import UserError
from k400tiny_lib.registry.model_card import video_card
from k400tiny_lib.registry.promotion import (
    CHALLENGER,
    CHAMPION,
    champion_of,
    set_alias,
    version_with,
    versions_of,
)
from k400tiny_lib.registry.video_log import log_video_classifier
from k400tiny_lib.tracking.models import files_are_gone, onnx_file_of, register_logged
from k400tiny_lib.tracking.runs import active_run_id

ONNX_MODEL_TAG, ONNX_VERSION_TAG = "onnx_model", "onnx_version"  # the sibling of a version


def register_video_classifier(onnx_uri: str, onnx_version: ModelVersion, name: str) -> ModelVersion:
    """Log and register the video classifier of an ONNX model that has just been registered.

    Args:
        onnx_uri: of the logged ONNX model; its file is copied into the new model.
        onnx_version: its version in the registry, after the decision about its promotion.
        name: of the registered video classifier, created where it does not exist.

    Returns:
        The version, with alias `challenger`, and `champion` if its ONNX model is champion.
    """
    registered = register_sibling(onnx_uri, onnx_version, name)
    newest = version_with(CHALLENGER, onnx_version.name) or str(onnx_version.version)
    challenger = sibling_of(onnx_version.name, newest, name) or registered
    set_alias(name, CHALLENGER, str(challenger.version))
    try:
        follow_champion(onnx_version.name, name)
    except UserError as error:  # the files of an older champion; this export is complete
        print(f"{name}: its champion stays as it is: {error}", flush=True)
    return registered


def register_sibling(onnx_uri: str, onnx_version: ModelVersion, name: str) -> ModelVersion:
    """Log and register the video classifier of a registered ONNX model, with tags and description.

    Args:
        onnx_uri: of the ONNX model, logged or registered.
        onnx_version: its version in the registry.
        name: of the registered video classifier.

    Raises:
        UserError: if its file cannot be fetched.
    """
    onnx_file = onnx_file_of(onnx_uri, "registered_model_name")
    texts = Model.load(str(onnx_file.parent)).metadata or {}
    metadata = {key: json.loads(value) for key, value in texts.items()}
    logged = log_video_classifier(onnx_file)
    onnx_model, number = onnx_version.name, str(onnx_version.version)
    # Those of the ONNX model that describe the model, not what was done with its version.
    tags = {
        n: v for n, v in onnx_version.tags.items() if not n.startswith(("k400tiny.", "mlflow."))
    }
    tags |= {ONNX_MODEL_TAG: onnx_model, ONNX_VERSION_TAG: number}
    registered = register_logged(logged, name, tags)
    card = video_card(name, str(registered.version), onnx_model, number, metadata)
    MlflowClient().update_model_version(name, registered.version, card)
    return registered


def sibling_of(onnx_name: str, number: str, name: str) -> ModelVersion | None:
    """The newest video classifier of a version of the ONNX model that has its files, if any."""
    for candidate in reversed(versions_of(name)):
        tags = candidate.tags
        is_sibling = (tags.get(ONNX_MODEL_TAG), tags.get(ONNX_VERSION_TAG)) == (onnx_name, number)
        if is_sibling and not files_are_gone(candidate):
            return candidate
    return None


def follow_champion(onnx_name: str, name: str) -> None:
    """Give `champion` to the video classifier of the ONNX model's champion.

    Where that has none (any more), one is registered; where another export is about to do so, a
    line says it. The last of several exports at the same moment to call this finds both models in
    their final state.

    Raises:
        UserError: if the ONNX model has no champion, or its file cannot be fetched.
    """
    client = MlflowClient()
    leader = champion_of(onnx_name)
    while leader is not None:
        sibling = sibling_of(onnx_name, leader, name)
        if sibling is None:
            version = client.get_model_version(onnx_name, leader)
            if _is_being_exported(version):
                print(f"{name}: run {version.run_id} is about to register its champion", flush=True)
                return
            print(f"{name}: had nothing of the champion, version {leader}; made again", flush=True)
            sibling = register_sibling(f"models:/{onnx_name}/{leader}", version, name)
        set_alias(name, CHAMPION, str(sibling.version))
        previous, leader = leader, champion_of(onnx_name)
        if leader == previous:
            return
    raise UserError(f"registered_model_name: {onnx_name} has no champion to follow.")


def _is_being_exported(version: ModelVersion) -> bool:
    """Whether another run, which exports this version, has not ended."""
    if not version.run_id or version.run_id == active_run_id():
        return False
    try:
        return bool(MlflowClient().get_run(version.run_id).info.status == "RUNNING")
    except MlflowException:  # a run of another store, or deleted for good
        return False
