"""The model registry: a version with signature, class names and aliases."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
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
from k400tiny_lib.errors import UserError
from k400tiny_lib.export.graph import INPUT, OUTPUT

CHAMPION, CHALLENGER = "champion", "challenger"
MODEL_NAME = "model"


def log_onnx(proto: onnx.ModelProto, metadata: Mapping[str, Any]) -> str:
    """Log a graph to the active run as one file, with signature; returns the model's URI.

    mlflow changes the proto it is given: check it before.
    """
    clip_len, num_classes = metadata["clip_len"], len(metadata["class_names"])
    signature = ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, clip_len, -1, -1, 3), INPUT)]),
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


def champion(name: str) -> ModelVersion | None:
    """The version that carries the alias `champion`, or None."""
    try:
        return MlflowClient().get_model_version_by_alias(name, CHAMPION)
    except MlflowException:
        return None


def register(
    model_uri: str, name: str, run_id: str, tags: Mapping[str, str], promote: str
) -> tuple[ModelVersion, bool]:
    """Register a logged model that passed the parity gate.

    Args:
        model_uri: what `log_onnx` returned.
        name: of the registered model, created where it does not exist.
        run_id: of the export.
        tags: of the version.
        promote: `always`, or `never` (the alias then moves only where there is no champion).

    Returns:
        The version, with alias `challenger`, and whether it is `champion` now.
    """
    registered = mlflow.register_model(model_uri, name, tags=dict(tags))
    client = MlflowClient()
    client.set_registered_model_alias(name, CHALLENGER, registered.version)
    promoted = promote == "always" or champion(name) is None
    if promoted:
        client.set_registered_model_alias(name, CHAMPION, registered.version)
    return registered, promoted


@dataclass(frozen=True)
class RegisteredModel:
    """A model from the registry with what its metadata says: class names and frames per clip."""

    pyfunc: PyFuncModel
    class_names: list[str]
    clip_len: int

    def predict(self, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 (N, clip_len, H, W, 3), RGB, to probabilities (N, K)."""
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
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"model_uri: {uri} cannot be loaded ({reason}). Needed: a registered model; "
            "`mlflow run . -e main` makes one."
        ) from None
    metadata = pyfunc.metadata.metadata or {}
    if "class_names" not in metadata or "clip_len" not in metadata:
        raise UserError(f"model_uri: {uri} was not exported by export_onnx (no class names).")
    return RegisteredModel(
        pyfunc, json.loads(metadata["class_names"]), int(json.loads(metadata["clip_len"]))
    )
