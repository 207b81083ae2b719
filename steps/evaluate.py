"""Score a checkpoint, or torchvision weights, on a held-out split; tables and a page go to the run.

mlflow run . -e evaluate --env-manager local \\
    -P data_path=frames -P annotations=annotations.json -P checkpoint=best.pt
mlflow run . -e evaluate --env-manager local -P data_path=frames -P annotations=annotations.json \\
    -P weights=R2Plus1D_18_Weights.KINETICS400_V1 -P num_clips=5
"""

from typing import TYPE_CHECKING

from k400tiny_lib.config import Config
from k400tiny_lib.workflow.command import step_command

if TYPE_CHECKING:
    import pandas as pd

    from k400tiny_lib.data.annotations import Annotations
    from k400tiny_lib.evaluation.views import Protocol


@step_command("evaluate")
def evaluate(config: Config) -> None:
    """Check the inputs, launch the workers, log what follows from their predictions."""
    import tempfile
    from pathlib import Path

    import mlflow

    from k400tiny_lib.data.annotations import check_annotations, read_annotations
    from k400tiny_lib.distributed.launch import launch
    from k400tiny_lib.errors import UserError
    from k400tiny_lib.evaluation import worker
    from k400tiny_lib.evaluation.evaluation import find
    from k400tiny_lib.evaluation.facts import Fact, data_facts, model_facts, split_digest
    from k400tiny_lib.evaluation.gradcam import make_gallery
    from k400tiny_lib.evaluation.report import CURVE_METRICS, plot_confusion, render_report
    from k400tiny_lib.evaluation.views import Protocol, check_views
    from k400tiny_lib.models.loaded import load_model
    from k400tiny_lib.tracking import evaluation_log as evaluated
    from k400tiny_lib.tracking.runs import active_run_id, local_inputs

    config = local_inputs(config, "data_path", "annotations", "checkpoint")
    annotations, split = read_annotations(Path(config.annotations)), config.split
    clips, data_path = annotations.splits[split], Path(config.data_path)
    if not clips:
        raise UserError(f"split: {split} has no clips. Needed: one of the splits that has some.")
    subject = load_model(config, annotations.categories)
    protocol = Protocol(config.num_clips, config.num_crops)
    check_annotations(annotations, data_path, Config(clip_len=subject.geometry.clip_len))
    check_views(clips, protocol)
    other, compared_with = _other_predictions(config, annotations, protocol)

    with tempfile.TemporaryDirectory() as folder:
        job = worker.Job(config, Path(folder))
        launch(job, module=worker.__name__)
        tables = worker.read_tables(job, annotations)
        table = tables[split]
        probes = worker.read_probes(job, table) if config.robustness else None

    fitting = None if split == worker.FITTING_SPLIT else tables.get(worker.FITTING_SPLIT)
    findings = find(
        split,
        table,
        subject.class_names,
        averages=protocol.num_views > 1,
        fitting=fitting,
        probes=probes,
        other=other,
    )
    video, clip = (views.text(subject.geometry) for views in (protocol, Protocol(1, 1)))
    facts = [
        *data_facts(annotations, split),
        *model_facts(subject),
        Fact("commit", evaluated.git_commit() or "not started from a repository"),
        *(
            Fact(name, run_id, evaluated.run_link(run_id))
            for name, run_id in (
                ("evaluated by run", active_run_id()),
                ("trained by run", subject.run_id),
            )
            if run_id
        ),
    ]
    page = render_report(
        findings,
        subject,
        protocol=video,
        clip_protocol=clip,
        gallery=make_gallery(
            table, clips, subject.class_names, data_path, subject.model, subject.geometry
        ),
        histories=evaluated.metric_histories(subject.run_id, CURVE_METRICS),
        facts=facts,
        compared_with=compared_with,
    )

    evaluated.log_scores(
        findings.scores,
        table[["video", "group", "target"]],
        config.data_path,
        split,
        split_digest(annotations, split),
        subject.run_id,
    )
    mlflow.set_tags({evaluated.PROTOCOL_TAG: video, evaluated.CLIP_PROTOCOL_TAG: clip})
    for name, content in tables.items():
        file = "predictions.csv" if name == split else f"predictions_{name}.csv"
        mlflow.log_text(content.to_csv(index=False), f"evaluation/{file}")
    mlflow.log_text(findings.classes.to_csv(index=False), "evaluation/per_class.csv")
    if probes is not None:
        mlflow.log_text(probes.to_csv(index=False), "evaluation/robustness.csv")
    mlflow.log_text(findings.calibration_json, "evaluation/calibration.json")
    mlflow.log_figure(
        plot_confusion(findings, subject.class_names), "evaluation/confusion_matrix.png"
    )
    mlflow.log_text(page, "evaluation/report.html")
    print(findings.summary(video))


def _other_predictions(
    config: Config, annotations: "Annotations", protocol: "Protocol"
) -> "tuple[pd.DataFrame | None, str]":
    """What `compare_with` predicts for the same clips, and what it is, in words."""
    from pathlib import Path

    import pandas as pd

    from k400tiny_lib.config import NONE
    from k400tiny_lib.errors import UserError
    from k400tiny_lib.evaluation.comparison import align, predict_frames
    from k400tiny_lib.registry.registry import load_registered
    from k400tiny_lib.tracking.evaluation_log import predictions_uri
    from k400tiny_lib.tracking.runs import local_copy

    given, clips = config.compare_with, annotations.splits[config.split]
    if given == NONE:
        return None, ""
    if given.startswith("models:/"):
        model = load_registered(given, config.registered_model_name)
        other = predict_frames(
            model.predict,
            model.class_names,
            model.clip_len,
            clips,
            annotations.categories,
            Path(config.data_path),
            protocol,
        )
        return other, f"the model {given} (one centre crop, {protocol.num_clips} clip(s))"
    uri, its_protocol = predictions_uri(given)
    path = local_copy(uri, "compare_with")
    try:
        other = pd.read_csv(path, dtype={"video": str})
    except (OSError, ValueError) as error:
        raise UserError(f"compare_with: {uri} is no table of predictions ({error}).") from None
    words = f" (protocol: {its_protocol})" if its_protocol else ""
    return align(other, clips), f"{given}{words}"


if __name__ == "__main__":
    evaluate()
