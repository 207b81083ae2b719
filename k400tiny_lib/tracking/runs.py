"""The MLflow run of a step: adopted from `mlflow run`, or started when a step is run by hand."""

import contextlib
import multiprocessing.util
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import AUTO, NONE, STEPS, Config, parameters_of
from k400tiny_lib.errors import UserError, hide_passwords, one_line
from k400tiny_lib.files import ARTIFACT_SCHEMES, problem_of, writing_to
from k400tiny_lib.leftovers import Mark, temporary_directory
from k400tiny_lib.remote_files import fetch
from k400tiny_lib.tracking.naming import NOTE_TAG, initial_name, name_run
from k400tiny_lib.tracking.server import move_password_to_environment, shown_server
from k400tiny_lib.tracking.uploader import fail_fast, is_unreachable

STEP_TAG = "k400tiny.step"
VERSION_TAG = "k400tiny.version"
CACHE_KEY_TAG = "k400tiny.cache_key"
ERROR_TAG = "k400tiny.error"
ANNOTATIONS_TAG = "k400tiny.annotations"  # of train: what it was trained with
DATA_PATH_TAG = "k400tiny.data_path"
DATA_DIGEST_TAG = "k400tiny.data_digest"
MODEL_VERSION_TAG = "k400tiny.model_version"
VIDEO_VERSION_TAG = "k400tiny.video_model_version"
RESUMED_FROM_TAG = "k400tiny.resumed_from"
RESOLVED = "config/resolved.yaml"
MARKS = Path(".k400tiny", "running")  # a mark for each run of a step that is running
_KEPT = Path(".k400tiny", "runs")  # of unfinished runs
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
_ERROR_LENGTH = 5000  # MLflow refuses tags beyond 8000 characters


@contextmanager
def step_run(step: str, config: Config) -> Iterator[Run]:
    """Run a block inside the MLflow run of a step, FAILED with the reason if the block raises.

    What MLflow leaves in the temporary directory (downloads, above all) is deleted in the end.

    Raises:
        UserError: if the tracking store cannot be used.
    """
    move_password_to_environment()
    if step in (
        "main",
        "tune",
    ):  # its last line is the address; MLflow prints it for every run, twice
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
    launched = "MLFLOW_RUN_ID" in os.environ  # start_run deletes it
    with _temporary_directory():
        try:
            run = mlflow.start_run(run_name=None if launched else initial_name(step, config))
        except Exception as error:  # of the server's client, of a database, of its migration
            raise UserError(
                f"MLFLOW_TRACKING_URI: {shown_server()} fails: {one_line(error)}"
            ) from None
        # Before the tag: a run with that tag and without a mark lives elsewhere.
        mark = Mark(MARKS / run.info.run_id, {"store": shown_server()})
        try:
            _check_artifact_store(run)
            # `mlflow run <git URI>` stores that URI as it was typed.
            tags = {name: hide_passwords(value) for name, value in run.data.tags.items()}
            tags_of_ours = {STEP_TAG: step, VERSION_TAG: _version()}
            mlflow.set_tags(dict(tags.items() - run.data.tags.items()) | tags_of_ours)
            if ERROR_TAG in tags:  # of an earlier attempt
                mlflow.delete_tag(ERROR_TAG)
            name_run(run, step, config)
            if config.description != NONE and "description" in STEPS[step].params:
                mlflow.set_tag(NOTE_TAG, hide_passwords(config.description))
            log_parameters(step, config)
            yield run
        except BaseException as error:
            reason = "interrupted" if isinstance(error, KeyboardInterrupt) else str(error)
            reason = hide_passwords(reason) or type(error).__name__
            if _end_failed(run, reason[:_ERROR_LENGTH]):
                mark.remove()
            if is_unreachable(error):
                raise UserError(
                    f"MLFLOW_TRACKING_URI: no answer any more ({one_line(error)})."
                ) from None
            raise
        try:
            mlflow.end_run()
        except MlflowException as error:
            raise UserError(
                f"MLFLOW_TRACKING_URI: run {run.info.run_id} is done, but cannot be ended: {error}"
            ) from None
        mark.remove()


@cache
def _version() -> str:
    """That of this code. In a module, it would be part of every cache key."""
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if not project.exists():  # the folders were copied without it
        return "unknown"
    return str(tomllib.loads(project.read_text("utf-8"))["project"]["version"])


def log_parameters(step: str, config: Config) -> None:
    """Log the parameters of the active run that it does not have yet, and all as one file.

    `mlflow run` has logged those that it was given, in the user's spelling; a parameter cannot be
    logged again with another value, `auto` with what it became, say. The file has the final values.

    Raises:
        UserError: if the artifacts of the run cannot be written from here.
    """
    parameters = {n: hide_passwords(v) for n, v in parameters_of(step, config).items()}
    run = MlflowClient().get_run(active_run_id())
    mlflow.log_params({n: v for n, v in parameters.items() if n not in run.data.params})
    try:
        mlflow.log_dict(parameters, RESOLVED)
    except Exception as error:  # every artifact store raises its own
        if is_unreachable(error):
            raise
        raise UserError(
            f"MLFLOW_TRACKING_URI: the artifacts of this run belong in {run.info.artifact_uri}, "
            f"which cannot be written from here ({one_line(error)}). Needed: a directory that this "
            "user can write to, or a server that passes artifacts on (mlflow server "
            "--serve-artifacts)."
        ) from None


@contextmanager
def _temporary_directory() -> Iterator[None]:
    # MLflow downloads into new temporary directories that it never deletes. Only this process is
    # redirected, not those that it starts: some keep what they compiled for the next time. Nor is
    # multiprocessing, which deletes its own directory when Python ends, after ours is gone.
    multiprocessing.util.get_temp_dir()
    previous = tempfile.tempdir
    with temporary_directory("k400tiny-step-") as folder:
        tempfile.tempdir = folder
        try:
            yield
        finally:
            tempfile.tempdir = previous


def _end_failed(run: Run, message: str) -> bool:
    """End a run as FAILED with the reason; returns whether the store has taken that."""
    # Report the failure now, not after minutes of retries against an unreachable server.
    with fail_fast():
        try:
            mlflow.set_tag(ERROR_TAG, message)
        except MlflowException as error:
            print(f"run {run.info.run_id} stays RUNNING: {one_line(error)}", file=sys.stderr)
        # End it even if the call fails; otherwise MLflow's exit hook retries for minutes and marks
        # it FINISHED.
        with contextlib.suppress(MlflowException):
            mlflow.end_run("FAILED")
            return True
    return False


def _check_artifact_store(run: Run) -> None:
    # `mlflow ui`, started before the first run, creates the Default experiment with an artifact
    # location that only that server can serve.
    proxied = run.info.artifact_uri.startswith("mlflow-artifacts:")
    if proxied and not mlflow.get_tracking_uri().startswith("http"):
        raise UserError(
            "MLFLOW_TRACKING_URI: the experiment was made by `mlflow ui` and keeps its artifacts "
            "on that server. Needed: another experiment (mlflow run --experiment-name k400tiny "
            "...) or the server's address in MLFLOW_TRACKING_URI."
        )


@contextmanager
def kept_artifacts(artifact_path: str) -> Iterator[Path]:
    """A directory for files that become artifacts of the active run, however the block ends.

    It is below `.k400tiny`, so that the files of a process that was killed are found there, and
    is deleted when the run has them.

    Raises:
        UserError: if a file cannot be written.
    """
    # A checkout may belong to somebody else.
    base = _KEPT if os.access(".", os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(base, active_run_id(), artifact_path).absolute()
    with writing_to(folder, artifact_path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            try:
                mlflow.log_artifacts(str(folder), artifact_path)
            except BaseException:
                print(f"{artifact_path}: what there is, is in {folder}", file=sys.stderr)
                raise
            shutil.rmtree(folder.parent, ignore_errors=True)


def local_copy(uri: str, parameter: str) -> Path:
    """The local path of an input: the path itself, or a download of the URI.

    Args:
        uri: a local path, an artifact URI of MLflow (`runs:/<run_id>/<path>`), or a URI of fsspec
            (`s3://`, `gs://`, `memory://`), directories included.
        parameter: the parameter that named it, for the message.

    Raises:
        UserError: if nothing is there.
    """
    if not uri.startswith(ARTIFACT_SCHEMES):
        path = fetch(uri, parameter)
        if problem := problem_of(path):
            raise UserError(f"{parameter}: {uri} {problem}. Needed: a path or an artifact URI.")
        return path
    try:
        # Without dst_path a local artifact store answers with its own file, not with a copy.
        return Path(mlflow.artifacts.download_artifacts(uri))
    except Exception as error:  # every artifact store raises its own
        raise UserError(f"{parameter}: {uri} cannot be fetched: {one_line(error)}") from None


def read_artifact(uri: str, parameter: str) -> bytes:
    """The content of a file among the artifacts, before the step has a run.

    Raises:
        UserError: if there is no such file.
    """
    move_password_to_environment()
    with _temporary_directory():
        path = local_copy(uri, parameter)
        if path.is_dir():
            raise UserError(f"{parameter}: {uri} is a directory. Needed: a file.")
        return path.read_bytes()


def local_inputs(config: Config, *names: str) -> Config:
    """Replace the named inputs of a step by local paths; `none` and `auto` stay.

    Raises:
        UserError: if one of them is not there.
    """
    uris = {name: getattr(config, name) for name in names}
    local: dict[str, Any] = {
        name: str(local_copy(uri, name)) for name, uri in uris.items() if uri not in (NONE, AUTO)
    }
    return config.replace(**local)


def active_run_id() -> str:
    """The id of the step's run."""
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("a step runs inside step_run")
    return str(run.info.run_id)


def link_run(resumed_from: str | None, parent_run: str) -> None:
    """Tag the active run with the run that it continues, and nest it under a parent.

    Args:
        resumed_from: the run whose checkpoint is resumed, None for none.
        parent_run: the id of a run, `none` to leave it where it is.

    Raises:
        UserError: if the tracking store has no such parent.
    """
    if resumed_from is not None:
        mlflow.set_tag(RESUMED_FROM_TAG, resumed_from)
    if parent_run != NONE:
        try:
            MlflowClient().get_run(parent_run)
        except MlflowException:
            raise UserError(
                f"parent_run: {mlflow.get_tracking_uri()} has no run {parent_run}. Needed: the id "
                "of a run in the same tracking store."
            ) from None
        mlflow.set_tag("mlflow.parentRunId", parent_run)


def is_nested() -> bool:
    """Whether the step's run has a parent run (`main`, say)."""
    run = mlflow.active_run()
    return run is not None and "mlflow.parentRunId" in run.data.tags


def tag_cache_key(key: str) -> None:
    """Tag the active run with its cache key, by which later runs find and re-use it."""
    mlflow.set_tag(CACHE_KEY_TAG, key)
