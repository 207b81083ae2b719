"""Which finished run a step can re-use: same code, same parameters, same content of its inputs."""

from collections.abc import Collection
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run

from k400tiny_lib.config import AUTO, NONE, PARAMETERS, Config, parameters_of
from k400tiny_lib.data.sources.base import Source, open_source
from k400tiny_lib.evaluation.shift.unknown_clips import digest_unknown
from k400tiny_lib.files import combine_digests, combine_named_digests, file_digest
from k400tiny_lib.tracking.evaluation_log import evaluation_folder, predictions_uri
from k400tiny_lib.tracking.models import model_version_uri, version_has_files
from k400tiny_lib.tracking.runs import (
    CACHE_KEY_TAG,
    MODEL_VERSION_TAG,
    STEP_TAG,
    VIDEO_VERSION_TAG,
    local_copy,
)

ROOT = Path(__file__).resolve().parents[2]
_PACKAGE = ("k400tiny_lib/**/*.py", "k400tiny_lib/**/*.txt", "k400tiny_lib/**/*.j2")
_CODE = (*_PACKAGE, "steps/**/*.py", "requirements.txt")

# data_path is left out as well: its content is in the digest of the annotations or of the source.
NOT_IN_CACHE_KEY = {name for name, p in PARAMETERS.items() if not p.affects_result} | {"data_path"}

# What a finished run of a step must still hold: later steps and people read it.
_ARTIFACTS = {
    "prepare_data": ("annotations.json", "data_report.json"),
    "train": ("best.pt",),
    "evaluate": ("predictions.csv", "per_class.csv", "calibration.json", "report.html"),
}
_FOLDERS = {"prepare_data": "annotations", "train": "checkpoints", "evaluate": "evaluation"}


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
    parts = [step, code_digest(), *parameter_identities(step, config)]
    if step == "prepare_data":
        parts.append((source or open_source(config)).digest())
    return combine_digests(parts)


def parameter_identities(step: str, config: Config, without: Collection[str] = ()) -> list[str]:
    """The names of the parameters that a step's result depends on, each with value or content.

    Args:
        step, config: what is run.
        without: names to leave out.

    Raises:
        UserError: if an input cannot be read.
    """
    parameters = parameters_of(step, config)
    names = sorted(parameters.keys() - NOT_IN_CACHE_KEY - set(without))
    return [t for n in names for t in (n, _identity(n, parameters[n], config))]


def _identity(name: str, value: str, config: Config) -> str:
    """The content behind a parameter that names an input, else its text."""
    if name == "gt_csv":  # its content is in the digest of the source
        return ""
    if not PARAMETERS[name].is_input or value == NONE:
        return value
    if value == AUTO:
        if name != "resume":
            return value
        # A directory named by the run holds no other training than this one.
        if config.checkpoint_dir == AUTO or not Path(config.checkpoint_dir).exists():
            return NONE
        value = config.checkpoint_dir
    if name == "annotations":
        # By content even of a run: data prepared again in the same way is the same data.
        return _content(local_copy(value, name))
    if name == "evaluation":
        folder = evaluation_folder(value)
        files = (local_copy(f"{folder}/{f}", name) for f in ("predictions.csv", "calibration.json"))
        return combine_digests(map(_content, files))
    if name == "unknown_path" and not value.startswith("runs:/"):
        # What evaluate reads there: links are followed, and other files change nothing.
        return digest_unknown(local_copy(value, name))
    if name == "compare_with":
        value, _ = predictions_uri(value)
    return _input_identity(value, name)


def _input_identity(uri: str, parameter: str) -> str:
    """What an input is, so that another content is another text.

    The artifacts of a run and of a version of a model never change: their URI says as much as the
    files, and costs nothing. An alias counts as the version that it means now. Everything else is
    read.
    """
    if uri.startswith("runs:/"):
        return uri
    if uri.startswith("models:/"):
        return model_version_uri(uri, parameter)
    return _content(local_copy(uri, parameter))


def _content(path: Path) -> str:
    """Digest of a file, or of the files of a directory."""
    if not path.is_dir():
        return file_digest(path)
    # Hidden files are those that are still being written.
    files = (f for f in path.rglob("[!.]*") if f.is_file())
    return combine_named_digests({str(f.relative_to(path)): file_digest(f) for f in files})


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
        if step in _ARTIFACTS:
            folder = _FOLDERS[step]
            files = mlflow.artifacts.list_artifacts(run_id=run.info.run_id, artifact_path=folder)
            return {f"{folder}/{n}" for n in _ARTIFACTS[step]} <= {file.path for file in files}
        versions = run.data.tags[MODEL_VERSION_TAG], run.data.tags[VIDEO_VERSION_TAG]
        return all(version_has_files(*version.split("/")) for version in versions)
    except Exception:  # every artifact store raises its own; the step then runs again
        return False
