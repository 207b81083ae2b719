"""A tracking server that is away: how long a call waits for it, and how its errors look."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mlflow.exceptions import MlflowException

# MLflow tries a call 8 times over four minutes, each for up to two minutes.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


@contextmanager
def impatient() -> Iterator[None]:
    """Within the block a call to a server fails at once, or after ten seconds of silence.

    For calls that are tried again later anyway, or that must not hold up an error message.
    """
    before = {name: os.environ.get(name) for name in _IMPATIENT}
    os.environ.update(_IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def is_away(error: BaseException) -> bool:
    """Whether an error says that no answer came from a tracking server."""
    # MLflow has no type for it: whatever `requests` raises comes as this sentence.
    return isinstance(error, MlflowException) and str(error).startswith("API request to ")
