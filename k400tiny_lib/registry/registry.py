"""The model registry: a version with signature, class names and aliases."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import onnx
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import PyFuncModel
from mlflow.types import Schema, TensorSpec

from k400tiny_lib.config import AUTO
from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.export.onnx_graph import INPUT, OUTPUT, frames_free
from k400tiny_lib.registry.promotion import Verdict

CHAMPION, CHALLENGER = "champion", "challenger"
MODEL_NAME = "model"
DECISION_TAG = "k400tiny.promotion"  # of a version: pending, or how it was decided
TEST_DIGEST_TAG = "test_digest"
PREDICTIONS = "export/predictions.csv"  # of an export's run
_TAGGED = (
    "architecture",
    "quantize",
    "training_run_id",
    "commit",
    "temperature",
    "test_acc1",
    "test_acc1_interval",
    "test_loss",
    "protocol",
    "data_digest",
    TEST_DIGEST_TAG,
)
_PENDING, _ABANDONED = "pending", "challenger: its export ended before it was compared"
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
_PATIENCE_S, _POLL_S = 60.0, 0.2


def log_onnx(proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> str:
    """Log a graph to the active run as one file, with signature; returns the model's URI.

    mlflow changes the proto it is given: check it before.

    Args:
        proto: as `graph.export_graph` made it.
        metadata: what was written into it.
    """
    num_classes = len(metadata["class_names"])
    views = metadata.get("views_in_graph", 1)
    num_frames = -1 if frames_free(proto) else views * metadata["clip_len"]
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, num_frames, -1, -1, 3), INPUT)]),
        outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, num_classes), OUTPUT)]),
    )
    info = mlflow.onnx.log_model(
        onnx_model=proto,
        name=MODEL_NAME,
        signature=signature,
        save_as_external_data=False,
        # Named here: otherwise mlflow asks for CUDA first and warns where there is none.
        onnx_execution_providers=["CPUExecutionProvider"],
        # Named here: otherwise mlflow loads the model once more to find out.
        pip_requirements=[
            f"{name}=={version(name)}" for name in ("mlflow", "onnxruntime", "onnx", "numpy")
        ],
        metadata={key: json.dumps(value) for key, value in metadata.items()},
    )
    return str(info.model_uri)


def version_tags(metadata: Mapping[str, Any], parity: float) -> dict[str, str]:
    """The tags of a version: what can be searched for in the registry."""
    tags = {"parity_max_abs_diff": f"{parity:.3g}"}
    for name in _TAGGED:
        if metadata.get(name) not in (None, ""):
            tags[name] = str(metadata[name])
    return tags


def champion(name: str) -> ModelVersion | None:
    """The version that carries the alias `champion`, or None."""
    try:
        return MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        # A server that is away must not be taken for a registry without a champion.
        if error.error_code in _NOT_THERE:
            return None
        raise


def register(
    model_uri: str,
    name: str,
    tags: Mapping[str, str],
    promote: str,
    beats: Callable[[str], Verdict],
    description: str = "",
) -> tuple[ModelVersion, Verdict]:
    """Register a logged model that passed the parity gate and settle who is champion.

    Exports at the same moment decide one after the other, in the order of their version numbers,
    so that each compares itself with the champion that the one before it left.

    Args:
        model_uri: what `log_onnx` returned.
        name: of the registered model, created where it does not exist.
        tags: of the version.
        promote: `better`, `always` or `never`; where there is no champion, it becomes one.
        beats: whether the new version beats a champion, given by its version, and why.
        description: of the version, in markdown, at most 5000 characters.

    Returns:
        The version, with alias `challenger`, and whether it is `champion` now, and why.
    """
    client = MlflowClient()
    # The tag comes into being with the version: no later version can miss it.
    registered = mlflow.register_model(model_uri, name, tags={**tags, DECISION_TAG: _PENDING})
    verdict = Verdict(False, "interrupted before it was compared")
    try:
        if description:
            client.update_model_version(name, registered.version, description)
        _await_turn(client, registered)
        client.set_registered_model_alias(name, CHALLENGER, registered.version)
        verdict = _decide(name, promote, beats)
        if verdict.promoted:
            client.set_registered_model_alias(name, CHAMPION, registered.version)
    finally:
        client.set_model_version_tag(name, registered.version, DECISION_TAG, verdict.text)
    return registered, verdict


def _decide(name: str, promote: str, beats: Callable[[str], Verdict]) -> Verdict:
    while True:
        current = champion(name)
        if current is None:
            return Verdict(True, "there was none")
        if promote != "better":
            return Verdict(promote == "always", f"promote={promote}")
        verdict = beats(str(current.version))
        # Scoring a champion can take minutes, in which somebody may roll back by hand.
        now = champion(name)
        if now is not None and now.version == current.version:
            return verdict


def _await_turn(client: MlflowClient, own: ModelVersion) -> None:
    """Wait until all earlier versions have decided.

    The registry has no locks, but it hands out version numbers one by one: they are the tickets
    of a queue that holds on all machines.
    """
    deadline, waiting = time.monotonic() + _PATIENCE_S, 0
    while True:
        pending = client.search_model_versions(
            f"name = '{own.name}' and tags.`{DECISION_TAG}` = '{_PENDING}'"
        )
        earlier = [v for v in pending if int(v.version) < int(own.version)]
        if not earlier:
            return
        if len(earlier) != waiting:  # the queue moves
            deadline, waiting = time.monotonic() + _PATIENCE_S, len(earlier)
        if time.monotonic() > deadline:
            for version in earlier:  # its export was killed
                client.set_model_version_tag(own.name, version.version, DECISION_TAG, _ABANDONED)
            return
        time.sleep(_POLL_S)


def stored_predictions(name: str, number: str, digest: str) -> Path | None:
    """The predictions that the export of a version left, if they are of the test clips `digest`."""
    found = MlflowClient().get_model_version(name, number)
    if found.tags.get(TEST_DIGEST_TAG) != digest or not found.run_id:
        return None
    try:
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{found.run_id}/{PREDICTIONS}"))
    except Exception:  # every artifact store raises its own; the version is then scored again
        return None


@dataclass(frozen=True)
class RegisteredModel:
    """A model from the registry with what its metadata says.

    Attributes:
        pyfunc: the loaded model.
        class_names: labels by class id.
        clip_len: frames of a view.
        views: that the graph averages; they follow one another along T.
    """

    pyfunc: PyFuncModel
    class_names: list[str]
    clip_len: int
    views: int = 1

    def predict(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (N, views * clip_len, H, W, 3), RGB, to probabilities (N, K)."""
        outputs: Any = self.pyfunc.predict({INPUT: frames})
        probabilities: npt.NDArray[np.float32] = outputs[OUTPUT]
        return probabilities


def load_registered(model_uri: str, name: str) -> RegisteredModel:
    """Load a model that `log_onnx` logged.

    Args:
        model_uri: of the model, or `auto` for the champion of `name`.
        name: of the registered model.

    Raises:
        UserError: if there is no such model, or it is none of ours.
    """
    uri = f"models:/{name}@{CHAMPION}" if model_uri == AUTO else model_uri
    try:
        pyfunc = mlflow.pyfunc.load_model(uri)
    except Exception as error:  # every store raises its own
        raise UserError(
            f"model_uri: {uri} cannot be loaded ({one_line(error)}). Needed: a registered model; "
            "`mlflow run . -e main` makes one."
        ) from None
    metadata = pyfunc.metadata.metadata or {}
    if "class_names" not in metadata or "clip_len" not in metadata:
        raise UserError(f"model_uri: {uri} was not exported by export_onnx (no class names).")
    return RegisteredModel(
        pyfunc,
        json.loads(metadata["class_names"]),
        int(json.loads(metadata["clip_len"])),
        int(json.loads(metadata.get("views_in_graph", "1"))),
    )
