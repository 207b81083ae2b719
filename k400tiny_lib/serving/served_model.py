"""What MLflow runs to load the video classifier ("models from code").

The copy of the library that is stored with the model is imported for it alone: a `k400tiny_lib`
that is imported already, from a checkout or with another version of the model, is not used and
stays what it is.
"""

import importlib
import sys
import threading
from pathlib import Path
from typing import Any

import mlflow

_LIBRARY = "k400tiny_lib"
_CLASSIFIER = f"{_LIBRARY}.serving.video_classifier"
_COPY = Path(__file__).parent / "code"  # where MLflow stores `code_paths`
# One for all versions, each of which has this file as a module of its own.
_lock: Any = sys.__dict__.setdefault("_k400tiny_import_lock", threading.RLock())


def _imported_alone(copy: Path) -> Any:
    """The module of the classifier, out of a copy of the library."""
    with _lock:
        others = _taken_out()
        # MLflow has put it there too, for good: another `import k400tiny_lib` would find it.
        while str(copy) in sys.path:
            sys.path.remove(str(copy))
        sys.path.insert(0, str(copy))
        try:
            return importlib.import_module(_CLASSIFIER)
        finally:
            sys.path.remove(str(copy))
            _taken_out()
            sys.modules.update(others)


def _taken_out() -> dict[str, Any]:
    """The modules of the library, which are imported anew from now on."""
    names = [name for name in sys.modules if name.partition(".")[0] == _LIBRARY]
    return {name: sys.modules.pop(name) for name in names}


# There is no copy yet when MLflow runs this to log the model.
_module = _imported_alone(_COPY) if _COPY.is_dir() else importlib.import_module(_CLASSIFIER)
mlflow.models.set_model(_module.VideoClassifier())
