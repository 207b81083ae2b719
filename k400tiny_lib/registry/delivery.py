"""Copies a registered ONNX model to a directory of the user's choice."""

from mlflow.entities.model_registry import ModelVersion

from k400tiny_lib import files, remote_files
from k400tiny_lib.tracking.runs import local_copy

_PARAMETER = "onnx_dir"


def deliver(version: ModelVersion, uri: str) -> str:
    """Write model.onnx, labels.txt and test_vector.npz of a version into a directory.

    Args:
        version: of the ONNX model; one that was registered before these files were has the model
            alone.
        uri: a local directory or a URI of fsspec.

    Returns:
        A line about it for the console.

    Raises:
        UserError: if they cannot be written.
    """
    model = local_copy(f"models:/{version.name}/{version.version}", _PARAMETER)
    names = {"model.onnx": model / "model.onnx"}
    if (extra := model / "extra_files").is_dir():
        names |= {path.name: path for path in sorted(extra.iterdir())}
    remote_files.write_files(names, uri, _PARAMETER)
    source = f"models:/{version.name}/{version.version}"
    return f"onnx_dir: {files.absolute(uri)} has {', '.join(names)} of {source}"
