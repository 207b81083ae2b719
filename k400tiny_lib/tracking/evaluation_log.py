"""Logs an evaluation to its MLflow run, and finds earlier evaluations and models to compare with.

What needs torch or scikit-learn is imported within the functions: `main` imports this module, too.
"""

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlflow
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.errors import UserError, hide_passwords, one_line
from k400tiny_lib.tracking.models import logged_model_id, open_registered
from k400tiny_lib.tracking.naming import NOTE_TAG
from k400tiny_lib.tracking.runs import active_run_id, local_copy
from k400tiny_lib.tracking.server import run_page

if TYPE_CHECKING:
    from k400tiny_lib.evaluation.comparison import OtherModel
    from k400tiny_lib.evaluation.evaluation import Evaluation
    from k400tiny_lib.evaluation.report import Provenance

PROTOCOL_TAG = "k400tiny.protocol"
CLIP_PROTOCOL_TAG = "k400tiny.clip_protocol"
PREDICTIONS = "evaluation/predictions.csv"
_RUN_ID = re.compile(r"(?:runs:/)?([0-9a-f]{32})/?")
_EVALUATE_RUN_TAG = "k400tiny.run.evaluate"  # main's tag for the run of its evaluate step


def log_evaluation(evaluation: "Evaluation", data_path: str) -> None:
    """Log scores, protocol, tables, the confusion matrix and the report to the active run."""
    from k400tiny_lib.evaluation.report import plot_confusion_matrix, render_report

    page = render_report(evaluation, provenance(evaluation.model.run_id))
    _log_scores(evaluation, data_path)
    tags = {PROTOCOL_TAG: evaluation.protocol, CLIP_PROTOCOL_TAG: evaluation.clip_protocol}
    if evaluation.labels.summary:
        tags[NOTE_TAG] = evaluation.labels.summary
    mlflow.set_tags(tags)
    for name, text in (evaluation.files() | {"report.html": page}).items():
        mlflow.log_text(text, f"evaluation/{name}")
    matrix = plot_confusion_matrix(evaluation.table, evaluation.model.class_names)
    mlflow.log_figure(matrix, "evaluation/confusion_matrix.png")


def _log_scores(evaluation: "Evaluation", data_path: str) -> None:
    """Log scores, linked to the split by its digest and to the model exported from the same run.

    The split becomes an input of the active run. The Models page shows the scores with the newest
    registered model that was exported from the same training run. If there is none yet (main
    evaluates before it exports), export_onnx links them.
    """
    from mlflow.data.pandas_dataset import from_pandas

    split = evaluation.split
    with warnings.catch_warnings():
        # mlflow registers its source type of local paths twice and warns that it must choose, and
        # it warns of whole numbers in the schema.
        warnings.simplefilter("ignore", UserWarning)
        dataset = from_pandas(
            evaluation.table[["video", "group", "target"]],
            source=hide_passwords(data_path),
            targets="target",
            name=f"k400tiny-{split}",
            digest=evaluation.annotations.split_digest(split),
        )
        mlflow.log_input(dataset, context=split)
    model_id = _newest_export(evaluation.model.run_id)
    mlflow.log_metrics(dict(evaluation.scores), dataset=dataset, model_id=model_id)


def _newest_export(training_run: str) -> str | None:
    if not training_run:
        return None
    versions = MlflowClient().search_model_versions(f"tags.training_run_id = '{training_run}'")
    newest = max(versions, key=lambda version: int(version.creation_timestamp), default=None)
    return None if newest is None else logged_model_id(newest)


def provenance(training_run: str) -> "Provenance":
    """Commit, runs and learning curves of an evaluation; `training_run` is "" for none."""
    from k400tiny_lib.evaluation.report import Fact, Provenance
    from k400tiny_lib.plots import CURVE_METRICS

    runs = {"evaluated by run": active_run_id(), "trained by run": training_run}
    facts = [
        Fact("commit", git_commit() or "not started from a repository"),
        *(Fact(name, run_id, _page_of(run_id)) for name, run_id in runs.items() if run_id),
    ]
    return Provenance(facts, _metric_histories(training_run, CURVE_METRICS))


def _metric_histories(run_id: str, names: Sequence[str]) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) pairs of a run's metrics; empty for a run that is not in this store."""
    if not run_id:
        return {}
    client = MlflowClient()
    try:
        histories = {name: client.get_metric_history(run_id, name) for name in names}
    except MlflowException:
        return {}
    return {
        name: sorted({metric.step: metric.value for metric in history}.items())
        for name, history in histories.items()
        if history
    }


def _page_of(run_id: str) -> str | None:
    try:
        return run_page(MlflowClient().get_run(run_id))
    except MlflowException:
        return None


def git_commit() -> str:
    """The commit that the active run was started from, or "" outside a repository."""
    tags = MlflowClient().get_run(active_run_id()).data.tags
    return str(tags.get("mlflow.source.git.commit", ""))


def other_model(config: Config) -> "OtherModel | None":
    """The model that `compare_with` names: a run or table of predictions, or a registered model.

    Raises:
        UserError: if there is no such run, table or model.
    """
    from k400tiny_lib.evaluation.comparison import OtherModel
    from k400tiny_lib.evaluation.predictions import read_predictions

    uri = config.compare_with
    if uri == NONE:
        return None
    if uri.startswith("models:/"):
        classifier = open_registered(
            uri, config.registered_model_name, device="cpu", parameter="compare_with"
        )
        if classifier.views > 1:
            raise UserError(
                f"compare_with: {uri} averages {classifier.views} views in its graph. Needed: a "
                "model exported with views_in_graph=1."
            )
        name = f"the model {uri} (one center crop, {config.num_clips} clip(s))"
        return OtherModel(name, classifier)
    table_uri, protocol = predictions_uri(uri)
    table = read_predictions(local_copy(table_uri, "compare_with"), "compare_with")
    name = hide_passwords(uri)  # it is shown in the report
    return OtherModel(f"{name} (protocol: {protocol})" if protocol else name, table)


def predictions_uri(evaluation: str, parameter: str = "compare_with") -> tuple[str, str]:
    """The table of predictions of an evaluation.

    Args:
        evaluation: a run of evaluate or main (its id or runs:/<id>), or a path or URI of a table.
        parameter: the parameter that named it, for the message.

    Returns:
        The path or URI of the table, and the protocol of its run if it is known.

    Raises:
        UserError: if there is no such run.
    """
    match = _RUN_ID.fullmatch(evaluation)
    if match is None:
        return evaluation, ""
    client = MlflowClient()
    try:
        tags = client.get_run(match[1]).data.tags
        run_id = tags.get(_EVALUATE_RUN_TAG, match[1])
        tags = client.get_run(run_id).data.tags
    except MlflowException as error:
        raise UserError(
            f"{parameter}: no run {match[1]} ({one_line(error)}). Needed: one of evaluate or main."
        ) from None
    return f"runs:/{run_id}/{PREDICTIONS}", str(tags.get(PROTOCOL_TAG, ""))


def evaluation_folder(evaluation: str) -> str:
    """The folder of an evaluation's results: of a run as in `predictions_uri`, or a path or URI.

    Raises:
        UserError: if there is no such run.
    """
    uri, _ = predictions_uri(evaluation, "evaluation")
    return uri.removesuffix("/predictions.csv")
