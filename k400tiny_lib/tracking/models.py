"""Opens registered models."""

from k400tiny_lib.config import AUTO
from k400tiny_lib.errors import UserError
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
        name: of the registered model.
        num_threads, device, parameter: as for `open_classifier`.

    Raises:
        UserError: if there is no such model, or it was not exported by export_onnx.
    """
    uri = f"models:/{name}@champion" if model_uri == AUTO else model_uri
    try:
        path = local_copy(uri, parameter)
    except UserError as error:
        needed = "a registered model; `mlflow run . -e main` makes one"
        raise UserError(f"{str(error).rstrip('.')}. Needed: {needed}.") from None
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        raise UserError(f"{parameter}: {uri} holds {len(files)} .onnx files. Needed: one.")
    return open_classifier(files[0], num_threads, device, parameter)
