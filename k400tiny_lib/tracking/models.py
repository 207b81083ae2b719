"""Registered models: adds and opens versions, finds which one a name means and if it has files."""

import re
from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.logging_utils import disable_logging, enable_logging
from mlflow.utils.uri import is_local_uri

from k400tiny_lib.config import AUTO
from k400tiny_lib.config.model_names import DEFAULT_MODEL, default_model_name
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import problem_of
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.serving.onnx_classifier import (
    OnnxClassifier,
    execution_providers,
    open_classifier,
)
from k400tiny_lib.tracking.runs import local_copy

NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the registry's error codes


class NotLoadable(UserError):
    """The registry and the store answer, and the model is not there or cannot be opened.

    Another UserError about a model can also mean that they cannot be reached at the moment.

    Attributes:
        reason: in a few words.
    """

    def __init__(self, message: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


def register_logged(model_uri: str, name: str, tags: Mapping[str, str]) -> ModelVersion:
    """Register a logged model, without the lines that MLflow prints: the step has its own."""
    disable_logging()
    try:
        return mlflow.register_model(model_uri, name, tags=dict(tags))
    finally:
        enable_logging()


def open_registered(
    model_uri: str,
    name: str,
    num_threads: int | str = AUTO,
    device: str = AUTO,
    parameter: str = "model_uri",
) -> OnnxClassifier:
    """Open a model that export_onnx registered.

    Args:
        model_uri: a model or artifact URI, a directory or the .onnx file; `auto` for the champion
            of `name`.
        name: of the registered model; `auto` for the default architecture's or, where that has no
            champion, the architecture with the newest one.
        num_threads, device, parameter: as for `open_classifier`.

    Raises:
        NotLoadable: if there is no such registered model, it has no files, or they are not those of
            export_onnx.
        UserError: if this is not known, for it cannot be fetched, or `device` is not available.
    """
    uri = f"models:/{_name_with_champion(name)}@champion" if model_uri == AUTO else model_uri
    file = onnx_file_of(uri, parameter)
    execution_providers(device)  # a refusal of the device is not one of the file
    try:
        return open_classifier(file, num_threads, device, parameter)
    except UserError as error:
        reason = str(error).removeprefix(f"{parameter}: ").replace(str(file), file.name)
        raise NotLoadable(str(error), reason.rstrip(".")) from None


def onnx_file_of(uri: str, parameter: str) -> Path:
    """A local copy of the .onnx file of a model.

    Args:
        uri: a model or artifact URI, a directory or the .onnx file.
        parameter: the parameter that named it, for the message.

    Raises:
        NotLoadable: if there is no such registered model, or not one .onnx file in it.
        UserError: if it cannot be fetched.
    """
    try:
        path = local_copy(uri, parameter)
    except UserError as error:
        if not uri.startswith("models:/"):
            raise
        needed = "Needed: a registered model; `mlflow run . -e main` makes one."
        if reason := _why_not_there(uri):
            raise NotLoadable(f"{parameter}: {uri}: {reason}. {needed}", reason) from None
        raise UserError(f"{str(error).rstrip('.')}. {needed}") from None
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        reason = f"{len(files)} .onnx files are in it"
        raise NotLoadable(f"{parameter}: {uri}: {reason}. Needed: one.", reason)
    return files[0]


def _why_not_there(uri: str) -> str:
    """Why a registered model cannot be fetched, if the registry or the store says so, else ""."""
    name, version, _ = _split_model_uri(uri)
    client = MlflowClient()
    try:
        named = get_model_name_and_version(client, f"models:/{name}{version}")
        if len(named) != 2:
            return ""
        return "its files are gone" if files_are_gone(client.get_model_version(*named)) else ""
    except MlflowException as error:
        return one_line(error).rstrip(".") if error.error_code in NOT_THERE else ""


def files_are_gone(version: ModelVersion) -> bool:
    """Whether the store answers, and lacks the MLmodel or the ONNX file of a version.

    False where the store cannot be reached: it may have the files.
    """
    try:
        return not version_has_files(version.name, version.version) and _store_is_there(version)
    except MlflowException as error:  # the logged model was deleted
        return bool(error.error_code == NOT_THERE[0])
    except Exception:  # every artifact store raises its own
        return False


def _store_is_there(version: ModelVersion) -> bool:
    """Whether the directory of a version's experiment is there, if it is a local one.

    A local store lists nothing, without an error, where a disk is not mounted or a folder is
    locked.
    """
    model_id = logged_model_id(version)
    if model_id is None:
        return True
    model = MlflowClient().get_logged_model(model_id)
    experiment = MlflowClient().get_experiment(model.experiment_id)
    if not is_local_uri(model.artifact_location):
        return True
    files, store = (
        problem_of(Path(local_file_uri_to_path(uri)))
        for uri in (model.artifact_location, experiment.artifact_location)
    )
    return not store and files in ("", "does not exist")


def _name_with_champion(name: str) -> str:
    if name != AUTO:
        return name
    client, champions = MlflowClient(), {}
    for architecture in (DEFAULT_MODEL, *ARCHITECTURES):
        name = default_model_name(architecture)
        try:
            champions[name] = client.get_model_version_by_alias(name, "champion").creation_timestamp
        except MlflowException:
            continue
        if architecture == DEFAULT_MODEL:
            return name
    return max(champions, key=champions.__getitem__, default=default_model_name(DEFAULT_MODEL))


def model_version_uri(uri: str, parameter: str) -> str:
    """A model URI with the version that it means now in place of an alias, stage or `latest`.

    Args:
        uri: `models:/<name>@<alias>`, `models:/<name>/<version>`, `models:/<model id>`, each
            perhaps with the path of a file.
        parameter: the parameter that named it, for the message.

    Returns:
        `models:/<name>/<version>` with the logged model that this is, since a model can be deleted
        and another one registered under the same name and number; the URI where it names neither.

    Raises:
        UserError: if there is no such version.
    """
    name, version, path = _split_model_uri(uri)
    try:
        named = get_model_name_and_version(MlflowClient(), f"models:/{name}{version}")
        if len(named) == 1:
            return uri
        source = MlflowClient().get_model_version(*named).source
    except MlflowException as error:
        raise UserError(
            f"{parameter}: {uri} is no model ({one_line(error)}). Needed: a registered model."
        ) from None
    return f"models:/{named[0]}/{named[1]}{path} {source}"


def _split_model_uri(uri: str) -> tuple[str, str, str]:
    """Name with alias, `/version` or stage, and the path of a file after these."""
    name, *rest = uri.removeprefix("models:/").strip("/").split("/")
    has_version = rest and "@" not in name and not name.startswith("m-")
    return name, f"/{rest.pop(0)}" if has_version else "", "".join(f"/{part}" for part in rest)


def version_has_files(name: str, number: str) -> bool:
    """Whether a version exists together with its MLmodel and its ONNX file.

    Raises:
        Exception: whatever the registry or the artifact store raises.
    """
    uri = f"models:/{name}/{number}"
    # The ONNX file of a video classifier is in artifacts/.
    files = [
        file.path
        for folder in (uri, f"{uri}/artifacts")
        for file in mlflow.artifacts.list_artifacts(artifact_uri=folder)
    ]
    return "MLmodel" in files and any(file.endswith(".onnx") for file in files)


def logged_model_id(version: ModelVersion) -> str | None:
    """The id of the logged model that a version was registered from, None for an older version.

    `ModelVersion.model_id` is None in MLflow's own stores; the source names it.
    """
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)/?", version.source or "")
    return version.model_id or (match[1] if match else None)
