"""Registered models: opens them, and says which version a name means and whether it has files."""

import re

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.utils.models import get_model_name_and_version

from k400tiny_lib.config import AUTO
from k400tiny_lib.config.model_names import DEFAULT_MODEL, default_model_name
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.models.architectures import ARCHITECTURES
from k400tiny_lib.serving.onnx_classifier import OnnxClassifier, open_classifier
from k400tiny_lib.tracking.runs import local_copy


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
        UserError: if there is no such model, or it was not exported by export_onnx.
    """
    uri = f"models:/{_name_with_champion(name)}@champion" if model_uri == AUTO else model_uri
    try:
        path = local_copy(uri, parameter)
    except UserError as error:
        needed = "a registered model; `mlflow run . -e main` makes one"
        raise UserError(f"{str(error).rstrip('.')}. Needed: {needed}.") from None
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        raise UserError(f"{parameter}: {uri} holds {len(files)} .onnx files. Needed: one.")
    return open_classifier(files[0], num_threads, device, parameter)


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
    client = MlflowClient()
    model_id = logged_model_id(client.get_model_version(name, number))
    if model_id is None:
        return False
    # The ONNX file of a video classifier is in artifacts/.
    files = [
        f.path for p in ("", "artifacts") for f in client.list_logged_model_artifacts(model_id, p)
    ]
    return "MLmodel" in files and any(file.endswith(".onnx") for file in files)


def logged_model_id(version: ModelVersion) -> str | None:
    """The id of the logged model that a version was registered from, None for an older version.

    `ModelVersion.model_id` is None in MLflow's own stores; the source names it.
    """
    match = re.fullmatch(r"models:/(m-[0-9a-f]+)/?", version.source or "")
    return version.model_id or (match[1] if match else None)
