"""Where a registered model's file lies."""

from pathlib import Path

from k400tiny_lib.config import AUTO
from k400tiny_lib.errors import UserError
from k400tiny_lib.tracking.runs import local_copy


def model_file(model_uri: str, name: str) -> Path:
    """The .onnx file of a model, fetched where it is not local.

    Args:
        model_uri: a model or artifact URI, a directory or the file; `auto` for the champion of
            `name`.
        name: of the registered model.

    Raises:
        UserError: if there is no such model, or not one .onnx file in it.
    """
    uri = f"models:/{name}@champion" if model_uri == AUTO else model_uri
    try:
        path = local_copy(uri, "model_uri")
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}. Needed: a registered model; `mlflow run . -e main` makes "
            "one."
        ) from None
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        raise UserError(f"model_uri: {uri} holds {len(files)} .onnx files. Needed: one.")
    return files[0]
