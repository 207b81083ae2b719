"""Which finished run a step can re-use: same code, same parameters, same content of its inputs."""

from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config, parameters_of
from k400tiny_lib.data.sources.base import Source, open_source
from k400tiny_lib.files import combine_digests, combine_named_digests, file_digest
from k400tiny_lib.tracking.evaluation_log import evaluation_folder
from k400tiny_lib.tracking.runs import CACHE_KEY_TAG, MODEL_VERSION_TAG, STEP_TAG, local_copy

ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = ("k400tiny_lib/**/*.py", "k400tiny_lib/**/*.txt", "k400tiny_lib/**/*.j2")
_CODE = (*_PACKAGE, "steps/**/*.py", "requirements.txt")

# data_path is left out as well: its content is in the digest of the annotations or of the source.
NOT_IN_CACHE_KEY = {name for name, p in PARAMETERS.items() if not p.affects_result} | {"data_path"}

_PROOF = {
    "prepare_data": "annotations/annotations.json",
    "train": "checkpoints/best.pt",
    "evaluate": "evaluation/predictions.csv",
}


def code_digest() -> str:
    """Digest of the project's code in its present state, committed or not."""
    files = (path for pattern in _CODE for path in ROOT.glob(pattern))
    return combine_named_digests({str(f.relative_to(ROOT)): file_digest(f) for f in files})


def cache_key(step: str, config: Config, source: Source | None = None) -> str:
    """What a step's result depends on, as one digest.

    Args:
        step: its name.
        config: its parameters.
        source: that of prepare_data, with its clips on disk, if it has been opened already.

    Raises:
        UserError: if an input cannot be read.
    """
    parameters = parameters_of(step, config)
    parts = [step, code_digest()]
    for name in sorted(parameters.keys() - NOT_IN_CACHE_KEY):
        parts += [name, _identity(name, parameters[name])]
    if step == "prepare_data":
        parts.append((source or open_source(config)).digest())
    return combine_digests(parts)


def _identity(name: str, value: str) -> str:
    """The content behind a parameter that names an input, else its text."""
    if value in (NONE, AUTO):
        return value
    if name == "annotations":
        return file_digest(local_copy(value, name))
    if name in ("checkpoint", "load_model", "resume"):
        # The artifacts of a run never change: its URI says as much as the file, and costs nothing.
        if value.startswith("runs:/"):
            return value
        path = local_copy(value, name)
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        return combine_digests(map(file_digest, files))
    if name == "evaluation":
        return file_digest(local_copy(f"{evaluation_folder(value)}/predictions.csv", name))
    return "" if name == "gt_csv" else value


def find_finished(step: str, key: str, experiment_id: str) -> Run | None:
    """The newest finished run of a step with this key whose result still exists."""
    runs = MlflowClient().search_runs(
        [experiment_id],
        f"tags.`{CACHE_KEY_TAG}` = '{key}' and tags.`{STEP_TAG}` = '{step}' "
        "and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in runs if _result_exists(step, run)), None)


def _result_exists(step: str, run: Run) -> bool:
    try:
        if step in _PROOF:
            folder = _PROOF[step].rpartition("/")[0]
            files = mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path=folder)
            return any(file.path == _PROOF[step] for file in files)
        name, _, version = run.data.tags.get(MODEL_VERSION_TAG, "").partition("/")
        MlflowClient().get_model_version(name, version)
    except (MlflowException, OSError):
        return False
    return True
