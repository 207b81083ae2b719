"""Bring clips to disk, check them, map their labels and split them by source.

mlflow run . -e prepare_data --env-manager local -P data_path=frames -P gt_csv=labels.csv
mlflow run . -e prepare_data --env-manager local -P data_path=videos -P gt_csv=videos.csv
mlflow run . -e prepare_data --env-manager local -P data_path=class_folders
mlflow run . -e prepare_data --env-manager local -P data_path=s3://bucket/videos \\
    -P gt_csv=s3://bucket/kinetics.csv -P scheduler=tcp://head:8786
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command

_MAX_LINES = 20


@step_command("prepare_data")
def prepare_data(config: Config) -> None:
    """Prepare the data and log annotations, split tables, report and pictures."""
    import warnings

    import mlflow
    from mlflow.data.pandas_dataset import from_pandas

    from k400tiny_lib.data.annotations import SPLITS
    from k400tiny_lib.data.preparation.plots import (
        plot_class_counts,
        plot_contact_sheet,
        plot_split_balance,
    )
    from k400tiny_lib.data.preparation.prepare import prepare
    from k400tiny_lib.data.sources.origin import clip_directory
    from k400tiny_lib.tracking.runs import DATA_DIGEST_TAG, DATA_PATH_TAG

    prepared = prepare(config)
    report, table, clips_path = prepared.report, prepared.table, clip_directory(config)
    for note in report["notes"]:
        print(f"note: {note}")
    for clip in report["dropped"][:_MAX_LINES]:
        print(f"dropped {clip['video']}: {clip['reason']}")
    if report["num_dropped"] > _MAX_LINES:
        print(f"and {report['num_dropped'] - _MAX_LINES} more, see annotations/data_report.json")

    mlflow.log_text(prepared.annotations.to_json(), "annotations/annotations.json")
    columns = ["folder_name", "youtube_id", "label", "target", "num_frames"]
    for split in SPLITS:
        rows = table.loc[table["split"] == split, columns]
        mlflow.log_text(rows.to_csv(index=False), f"annotations/splits/{split}.csv")
    mlflow.log_dict(report, "annotations/data_report.json")
    with warnings.catch_warnings():
        # mlflow has two names for a local source, and hints at missing values in whole numbers.
        warnings.simplefilter("ignore", UserWarning)
        data = from_pandas(
            table[[*columns, "split"]],
            source=str(clips_path),
            name=clips_path.name,
            digest=report["data_digest"],
        )
        mlflow.log_input(data, context="prepare_data")
    mlflow.log_figure(plot_class_counts(table), "images/class_counts.png")
    mlflow.log_figure(plot_split_balance(table), "images/split_balance.png")
    mlflow.log_figure(plot_contact_sheet(table, clips_path), "images/contact_sheet.png")
    names = ("num_clips", "num_groups", "num_classes", "num_dropped")
    mlflow.log_metrics({name: report[name] for name in names})
    mlflow.set_tags({DATA_PATH_TAG: str(clips_path), DATA_DIGEST_TAG: report["data_digest"]})

    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["split_fractions"].items())
    leak = report["random_split_would_leak"]
    print(
        f"{report['num_clips']} clips of {report['num_groups']} sources in "
        f"{report['num_classes']} classes, {report['num_dropped']} dropped; {shares}\n"
        f"{report['sources_in_several_splits']} sources stand in several splits; of a random "
        f"split, {leak['share']:.0%} of the held-out clips would have had their source in train"
    )


if __name__ == "__main__":
    prepare_data()
