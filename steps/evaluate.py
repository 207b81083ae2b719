"""Score a checkpoint on a held-out split; table, confusion matrix and report go to the run.

    mlflow run . -e evaluate --env-manager local \\
        -P data_path=frames -P annotations=annotations.json -P checkpoint=best.pt
"""

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command


@step_command("evaluate")
def evaluate(config: Config) -> None:
    """Predict every clip of the split once and log what follows from the predictions."""
    from pathlib import Path

    import mlflow
    import torch

    from k400tiny_lib.data.annotations import check_annotations, read_annotations
    from k400tiny_lib.errors import UserError
    from k400tiny_lib.evaluation.metrics import per_class, score
    from k400tiny_lib.evaluation.predictions import predict_clips
    from k400tiny_lib.evaluation.report import plot_confusion, protocol_text, render_report
    from k400tiny_lib.tracking.runs import local_copy
    from k400tiny_lib.training.checkpoint import check_categories, model_of, read_checkpoint

    annotations = read_annotations(local_copy(config.annotations, "annotations"))
    checkpoint = read_checkpoint(local_copy(config.checkpoint, "checkpoint"), "checkpoint")
    check_categories(checkpoint, annotations.categories)
    model, trained = model_of(checkpoint, "checkpoint")
    check_annotations(annotations, Path(config.data_path), trained)
    clips = annotations.splits[config.split]
    if not clips:
        raise UserError(f"split: {config.split} has no clips in {config.annotations}.")

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = predict_clips(
        model.to(device),
        clips,
        Path(config.data_path),
        geometry=trained,
        views=config,
        device=device,
    )
    scores = score(table, config.split)
    class_names = annotations.class_names
    classes = per_class(table, class_names)
    protocol = protocol_text(config.num_clips, config.num_crops)

    mlflow.log_metrics(scores)
    mlflow.set_tag("k400tiny.protocol", protocol)
    mlflow.log_text(table.to_csv(index=False), "evaluation/predictions.csv")
    mlflow.log_text(classes.to_csv(index=False), "evaluation/per_class.csv")
    mlflow.log_figure(plot_confusion(table, class_names), "evaluation/confusion_matrix.png")
    page = render_report(table, scores, classes, class_names, config.split, protocol)
    mlflow.log_text(page, "evaluation/report.html")
    acc1, low, high = (
        scores[f"{config.split}_{name}"] for name in ("acc1", "acc1_ci_low", "acc1_ci_high")
    )
    print(
        f"{config.split}: top-1 {acc1:.1f} % (95 % interval {low:.1f} to {high:.1f}) on "
        f"{len(table)} clips of {table['group'].nunique()} sources. {protocol}"
    )


if __name__ == "__main__":
    evaluate()
