"""What an evaluation asks MLflow for, and how its scores are tied to the data and the model."""

import re
import warnings
from collections.abc import Mapping, Sequence

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.exceptions import MlflowException

from k400tiny_lib.errors import UserError
from k400tiny_lib.tracking.runs import active_run_id

PROTOCOL_TAG = "k400tiny.protocol"
CLIP_PROTOCOL_TAG = "k400tiny.clip_protocol"
PREDICTIONS = "evaluation/predictions.csv"
_RUN_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})/?")
_EVALUATE_RUN_TAG = "k400tiny.run.evaluate"  # main's tag for the run of its evaluate step


def log_scores(
    scores: Mapping[str, float],
    clips: pd.DataFrame,
    data_path: str,
    split: str,
    digest: str,
    trained_by: str,
) -> None:
    """Log scores, tied to the split by its digest and to the model that was exported from the run.

    The split becomes an input of the active run. The Models page shows the scores beside the
    newest registered model that was exported from the same training run; where there is none yet
    (main evaluates before it exports), whoever exports ties them.

    Args:
        scores: values by name.
        clips: one row per clip: video, group, target.
        data_path: where the clips are.
        split: its name.
        digest: of the split's content, at most 36 characters.
        trained_by: the training run, as export_onnx writes it to the tag `training_run_id`.
    """
    with warnings.catch_warnings():
        # mlflow registers its source type of local paths twice and warns that it must choose, and
        # it warns of whole numbers in the schema.
        warnings.simplefilter("ignore", UserWarning)
        dataset = from_pandas(
            clips, source=data_path, targets="target", name=f"k400tiny-{split}", digest=digest
        )
        mlflow.log_input(dataset, context=split)
    mlflow.log_metrics(dict(scores), dataset=dataset, model_id=_newest_export(trained_by))


def _newest_export(trained_by: str) -> str | None:
    if not trained_by:
        return None
    versions = MlflowClient().search_model_versions(f"tags.training_run_id = '{trained_by}'")
    newest = max(versions, key=lambda version: int(version.creation_timestamp), default=None)
    return str(newest.model_id) if newest is not None and newest.model_id else None


def metric_histories(run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of a run's metrics; empty for a run that is not in this store."""
    if not run_id:
        return {}
    client = MlflowClient()
    try:
        found = {name: client.get_metric_history(run_id, name) for name in names}
    except MlflowException:
        return {}
    return {
        name: sorted({metric.step: metric.value for metric in history}.items())
        for name, history in found.items()
        if history
    }


def run_link(run_id: str) -> str | None:
    """The address of a run's page where the tracking server has one that a browser can open."""
    server = mlflow.get_tracking_uri()
    if not server.startswith("http"):
        return None
    try:
        experiment = MlflowClient().get_run(run_id).info.experiment_id
    except MlflowException:
        return None
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def git_commit() -> str:
    """The commit that the active run was started from, or "" outside a repository."""
    tags = MlflowClient().get_run(active_run_id()).data.tags
    return str(tags.get("mlflow.source.git.commit", ""))


def predictions_uri(given: str, parameter: str = "compare_with") -> tuple[str, str]:
    """Where the predictions of an evaluation are.

    Args:
        given: a run of evaluate or main (its id or runs:/<id>), or a path or URI of a table.
        parameter: the parameter that named it, for the message.

    Returns:
        The path or URI of the table, and the protocol of its run where that is known.

    Raises:
        UserError: if there is no such run.
    """
    match = _RUN_ID.fullmatch(given)
    if match is None:
        return given, ""
    client = MlflowClient()
    try:
        tags = client.get_run(match[1]).data.tags
        run_id = tags.get(_EVALUATE_RUN_TAG, match[1])
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        raise UserError(f"{parameter}: no run {match[1]} ({error}).") from None
    return f"runs:/{run_id}/{PREDICTIONS}", str(tags.get(PROTOCOL_TAG, ""))


def evaluation_folder(evaluation: str) -> str:
    """Where an evaluation's results are: of a run as in `predictions_uri`, or a path or URI.

    Raises:
        UserError: if there is no such run.
    """
    uri, _ = predictions_uri(evaluation, "evaluation")
    return uri.removesuffix("/predictions.csv")
