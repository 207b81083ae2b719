"""Logs a prepared data set to the active run, and describes it on the console."""

import warnings
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.data.pandas_dataset import from_pandas

from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation import plots
from k400tiny_lib.errors import hide_passwords, listed, printable
from k400tiny_lib.media.listing import describe_left_out
from k400tiny_lib.tracking.runs import DATA_DIGEST_TAG, DATA_PATH_TAG

if TYPE_CHECKING:
    from k400tiny_lib.data.preparation.prepare import Prepared

_COLUMNS = ["folder_name", "youtube_id", "label", "target", "num_frames"]
_METRICS = ("num_clips", "num_groups", "num_classes", "num_dropped", "num_left_out")
_MAX_LINES = 20


def log_prepared(prepared: "Prepared") -> None:
    """Log annotations, split tables, report, figures, metrics, and the data set as an input."""
    report, table, directory = prepared.report, prepared.table, prepared.directory
    mlflow.log_text(prepared.annotations.to_json(), "annotations/annotations.json")
    for split in SPLITS:
        rows = table.loc[table["split"] == split, _COLUMNS]
        mlflow.log_text(rows.to_csv(index=False), f"annotations/splits/{split}.csv")
    mlflow.log_dict(report, "annotations/data_report.json")
    mlflow.log_figure(plots.plot_class_counts(table), "images/class_counts.png")
    mlflow.log_figure(plots.plot_split_balance(table), "images/split_balance.png")
    mlflow.log_figure(plots.plot_contact_sheet(table, directory), "images/contact_sheet.png")
    mlflow.log_metrics({name: report[name] for name in _METRICS})
    source, digest = hide_passwords(str(directory)), report["data_digest"]
    with warnings.catch_warnings():
        # mlflow registers its source type of local paths twice and warns that it must choose, and
        # it warns of whole numbers in the schema.
        warnings.simplefilter("ignore", UserWarning)
        rows = table[[*_COLUMNS, "split"]]
        dataset = from_pandas(rows, source=source, name=directory.name, digest=digest)
        mlflow.log_input(dataset, context="prepare_data")
    mlflow.set_tags({DATA_PATH_TAG: source, DATA_DIGEST_TAG: digest})


def log_refused(report: dict[str, Any]) -> None:
    """Log the data report and metrics of clips that became no data set."""
    mlflow.log_dict(report, "annotations/data_report.json")
    mlflow.log_metrics({name: report[name] for name in _METRICS})


def describe(prepared: "Prepared") -> str:
    """Notes, dropped clips (the first 20), what was left out, and the splits, as lines."""
    report = prepared.report
    lines = [f"note: {note}" for note in report["notes"][:_MAX_LINES]]
    lines += [f"dropped {row['video']}: {row['reason']}" for row in report["dropped"][:_MAX_LINES]]
    for things in ("notes", "dropped"):
        if (unlisted := len(report[things]) - _MAX_LINES) > 0:
            lines.append(f"and {unlisted} more {things}, see annotations/data_report.json")
    if only := report["train_only_classes"]:
        classes = listed(list(map(repr, only)), _MAX_LINES)
        lines.append(f"classes in train only, not in the test: {classes}")
    lines += describe_left_out(report["left_out"], _MAX_LINES)
    if report["left_out"]:
        lines.append("all that was left out is in annotations/data_report.json")
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["split_fractions"].items())
    sources = f" of {report['num_groups']} sources" if report["sources_known"] else ""
    lines.append(
        f"{report['num_clips']} clips{sources} in {report['num_classes']} classes, "
        f"{report['num_dropped']} dropped; {shares}"
    )
    if (leak := report["random_split_would_leak"]) is not None:
        lines.append(
            f"{report['sources_in_several_splits']} sources are in several splits; in a random "
            f"split, {leak['share']:.0%} of the held-out clips would share their source with train"
        )
    else:
        why = "are not used (group_by=none)" if report["group_by"] == "single clips" else "unknown"
        lines.append(
            f"sources {why}: clips cut from one video may be in several splits, and then the test "
            "accuracy is too high"
        )
    return "\n".join(map(printable, lines))
