"""Check the clips, map their labels and split them by source; the annotations go to the run.

mlflow run . -e prepare_data --env-manager local -P data_path=frames -P gt_csv=labels.csv
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("prepare_data")
def prepare_data(config: Config) -> None:
    """Prepare the data and log annotations, split tables, report and pictures."""
    import mlflow

    from k400tiny_lib.data.annotations import SPLITS
    from k400tiny_lib.data.pictures import plot_class_counts, plot_contact_sheet
    from k400tiny_lib.data.prepare import clip_directory, prepare
    from k400tiny_lib.tracking.runs import DATA_DIGEST_TAG, DATA_PATH_TAG

    prepared = prepare(config)
    report, table = prepared.report, prepared.table
    for clip in report["dropped"]:
        print(f"dropped {clip['video']}: {clip['reason']}")

    mlflow.log_text(prepared.annotations.to_json(), "annotations/annotations.json")
    columns = ["folder_name", "youtube_id", "label", "target", "num_frames"]
    for split in SPLITS:
        rows = table.loc[table["split"] == split, columns]
        mlflow.log_text(rows.to_csv(index=False), f"annotations/splits/{split}.csv")
    mlflow.log_dict(report, "annotations/data_report.json")
    mlflow.log_figure(plot_class_counts(table), "images/class_counts.png")
    mlflow.log_figure(plot_contact_sheet(table, clip_directory(config)), "images/contact_sheet.png")
    names = ("num_clips", "num_groups", "num_classes", "num_dropped")
    mlflow.log_metrics({name: report[name] for name in names})
    mlflow.set_tags(
        {DATA_PATH_TAG: str(clip_directory(config)), DATA_DIGEST_TAG: report["data_digest"]}
    )
    shares = ", ".join(f"{name} {share:.0%}" for name, share in report["split_fractions"].items())
    print(
        f"{report['num_clips']} clips of {report['num_groups']} sources in "
        f"{report['num_classes']} classes, {report['num_dropped']} dropped; {shares}"
    )


if __name__ == "__main__":
    prepare_data()
