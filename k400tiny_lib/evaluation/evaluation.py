"""The evaluation of a split: checks, predictions in worker processes, and all results.

Adding a section to the report is a field of `Evaluation`, its value in `evaluate_predictions`, and
the section in `templates/report.html.j2`.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.value_types import ALL_CLIPS
from k400tiny_lib.data.annotations import Annotations, check_annotations, read_annotations
from k400tiny_lib.distributed.launch import Job
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import Calibration, calibrate, scale
from k400tiny_lib.evaluation.comparison import OtherModel, PairedComparison, compare_predictions
from k400tiny_lib.evaluation.cross_validation.doubted_labels import (
    NO_LIST,
    DoubtedLabels,
    doubt_labels,
)
from k400tiny_lib.evaluation.cross_validation.folds import (
    CrossValidation,
    cross_validate,
    cross_validated_clips,
)
from k400tiny_lib.evaluation.gradcam import Gallery, make_gallery
from k400tiny_lib.evaluation.metrics import confused_pairs, per_class, reliability, score
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.evaluation.shift.robustness import compare_corrupted
from k400tiny_lib.evaluation.shift.unknown import UnknownAnswers, UnknownRows, judge_unknown
from k400tiny_lib.evaluation.shift.unknown_clips import find_unknown
from k400tiny_lib.evaluation.threshold import Threshold, choose_threshold
from k400tiny_lib.evaluation.views import ViewProtocol, check_views
from k400tiny_lib.evaluation.worker import CALIBRATION_SPLIT, launch_workers, predict_splits
from k400tiny_lib.models.loaded import LoadedModel, load_model

NOT_CALIBRATED = (
    "Probabilities are not calibrated and there is no confidence threshold: both are chosen on "
    "validation clips, and there are none besides those evaluated."
)
NOT_THIS_HEAD = (
    "Probabilities are not calibrated and there is no confidence threshold: split=all predicts "
    "with other heads than the model has."
)


@dataclass(frozen=True)
class Evaluation:
    """The results of evaluating a model on a split.

    Attributes:
        split: the evaluated split.
        protocol, clip_protocol: of the video's and the clip's scores, in words.
        tables: predictions tables of the evaluated split and of the calibration split.
        scores: see `metrics.score`, and those of the parts below.
        classes, pairs, bins: see `per_class`, `confused_pairs` and `reliability` of `metrics`.
        bins_calibrated: the same at the temperature in use; None where that is 1.
        calibration, threshold: None without validation clips besides those evaluated.
        views: averaged views against the center view; None where they are the same.
        comparison: with the model that `compared_with` describes, if there is one.
        compared_with: the other model in words, or "".
        corrupted, corruptions: see `corruption_table` and `compare_corrupted` of `robustness`; None
            and empty where it was not measured.
        unknown: answers to the clips of `unknown_path`; None without it.
        validation: where split=all: how the clips were predicted.
        labels: the clips with doubted labels, or why there is no list.
    """

    split: str
    annotations: Annotations
    model: LoadedModel
    protocol: str
    clip_protocol: str
    tables: Mapping[str, pd.DataFrame]
    scores: Mapping[str, float]
    classes: pd.DataFrame
    pairs: pd.DataFrame
    bins: pd.DataFrame
    bins_calibrated: pd.DataFrame | None
    calibration: Calibration | None
    threshold: Threshold | None
    views: PairedComparison | None
    comparison: PairedComparison | None
    compared_with: str
    corrupted: pd.DataFrame | None
    corruptions: Mapping[str, PairedComparison]
    unknown: UnknownAnswers | None
    gallery: Gallery
    validation: CrossValidation | None
    labels: DoubtedLabels

    @property
    def table(self) -> pd.DataFrame:
        """The predictions table of the evaluated split."""
        return self.tables[self.split]

    def score(self, name: str) -> float | None:
        """A score by its name without the split's prefix; None if it is not defined here."""
        return self.scores.get(f"{self.split}_{name}")

    @property
    def summary(self) -> str:
        """The headline; in a line each calibration, threshold, unknown clips, doubted labels."""
        lines = [
            f"{self.split}: top-1 {self.score('acc1'):.1f} % (95 % interval "
            f"{self.score('acc1_ci_low'):.1f} to {self.score('acc1_ci_high'):.1f}) on "
            f"{len(self.table)} clips of {self.table['group'].nunique()} sources. {self.protocol}"
        ]
        if self.calibration is not None and self.threshold is not None:
            lines += [f"calibration: {self.calibration.statement}", f"threshold: {self.threshold}"]
        if self.unknown is not None:
            lines += self.unknown.describe()
        if self.validation is not None and self.validation.alone:
            lines.append(f"not evaluated: {self.validation.not_predicted}")
        if self.labels.summary:
            lines.append(self.labels.summary)
        return "\n".join(lines)

    def files(self) -> dict[str, str]:
        """Tables and calibration as the text of files, by name."""
        others = {f"predictions_{s}": t for s, t in self.tables.items() if s != self.split}
        tables = {"predictions": self.table, **others, "per_class": self.classes}
        if self.corrupted is not None:
            tables["robustness"] = self.corrupted
        if self.unknown is not None:
            tables["unknown"] = self.unknown.table
        if not self.labels.missing:
            tables["doubted_labels"] = self.labels.table
        return {f"{name}.csv": table.to_csv(index=False) for name, table in tables.items()} | {
            "calibration.json": json.dumps(self._calibration_facts(), indent=1)
        }

    def _calibration_facts(self) -> dict[str, Any]:
        """What export_onnx takes over into the model."""
        if self.calibration is None or self.threshold is None:
            statement = NOT_CALIBRATED if self.validation is None else NOT_THIS_HEAD
            return {"applied": False, "confidence_threshold": 0.0, "statement": statement}
        return dataclasses.asdict(self.calibration) | {
            "confidence_threshold": self.threshold.value,
            "statement": f"{self.calibration.statement} {self.threshold.statement}",
        }


def evaluate_split(
    config: Config,
    other: OtherModel | None = None,
    start_workers: Callable[[Job], None] = launch_workers,
) -> Evaluation:
    """Check the inputs, predict a split in worker processes and evaluate the predictions.

    Args:
        config: the parameters of evaluate, with local paths in place of URIs.
        other: a model to compare with.
        start_workers: runs the processes of a job.

    Raises:
        UserError: if the split is empty, an input is missing, or they do not fit together.
    """
    annotations, split = read_annotations(Path(config.annotations)), config.split
    clips, data_path = annotations.clips_of(split), Path(config.data_path)
    if not clips:
        raise UserError(f"split: {split} has no clips. Needed: one of the splits that has some.")
    model = load_model(config, annotations.categories)
    if split == ALL_CLIPS:
        clips = cross_validated_clips(annotations, model.trained)
    protocol = ViewProtocol(config.num_clips, config.num_crops)
    check_annotations(annotations, data_path, model.geometry.clip_len)
    check_views(annotations.clips_of(split), protocol)
    has_unknown = config.unknown_path != NONE
    unknown_clips = find_unknown(Path(config.unknown_path)) if has_unknown else None
    other_table = other.predictions(clips, annotations, config) if other else None
    predicted = predict_splits(config, annotations, start_workers, unknown_clips, model.trained)
    tables, validation = predicted.tables, None
    if predicted.features:
        validation = cross_validate(annotations, *predicted.features, len(model.class_names))
    labels = doubt_labels(validation, annotations, model, data_path)
    if split == ALL_CLIPS and validation:
        tables = {split: validation.table}
    return evaluate_predictions(
        split,
        tables,
        annotations,
        model,
        protocol,
        corrupted=predicted.corrupted,
        unknown=predicted.unknown,
        other=other_table,
        compared_with=other.name if other else "",
        gallery=make_gallery(tables[split], clips, data_path, model),
        validation=validation if split == ALL_CLIPS else None,
        labels=labels,
    )


def evaluate_predictions(
    split: str,
    tables: Mapping[str, pd.DataFrame],
    annotations: Annotations,
    model: LoadedModel,
    protocol: ViewProtocol,
    *,
    corrupted: pd.DataFrame | None = None,
    unknown: UnknownRows | None = None,
    other: pd.DataFrame | None = None,
    compared_with: str = "",
    gallery: Gallery | None = None,
    validation: CrossValidation | None = None,
    labels: DoubtedLabels = NO_LIST,
) -> Evaluation:
    """Compute all results from the predictions of a model.

    Args:
        split: the evaluated split.
        tables: the predictions tables of this split and, where there is one, of the calibration
            split.
        annotations, model, protocol: what the predictions were made with.
        corrupted: from `robustness.corruption_table`.
        unknown: from `join_unknown`, of clips of none of the classes.
        other: predictions of another model for the same clips in the same order.
        compared_with: the other model in words.
        gallery: clips to show.
        validation, labels: see `Evaluation`.
    """
    table, fitting = tables[split], tables.get(CALIBRATION_SPLIT)
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    calibration = threshold = bins_calibrated = None
    if fitting is not None and split != CALIBRATION_SPLIT:
        calibration = calibrate(fitting, table)
        threshold = choose_threshold(fitting, table, calibration.temperature)
        if calibration.applied:
            bins_calibrated = reliability(scale(probabilities, calibration.temperature), targets)
    answers = None
    if unknown is not None:
        temperature = calibration.temperature if calibration else 1.0
        answers = judge_unknown(unknown, table, temperature, threshold.value if threshold else 0.0)
    views = comparison = None
    if protocol.num_views > 1:
        views = compare_predictions(table, table["predicted"], table["clip_predicted"])
    if other is not None:
        comparison = compare_predictions(table, table["predicted"], other["predicted"])
    corruptions = compare_corrupted(corrupted) if corrupted is not None else {}
    further = _further_scores(calibration, comparison, corruptions)
    further |= (threshold.scores() if threshold else {}) | (answers.scores() if answers else {})
    scores = score(table, split) | {f"{split}_{name}": value for name, value in further.items()}
    return Evaluation(
        split=split,
        annotations=annotations,
        model=model,
        protocol=protocol.text(model.geometry) + (f"; {validation.method}" if validation else ""),
        clip_protocol=ViewProtocol(1, 1).text(model.geometry),
        tables=tables,
        scores=scores | labels.scores(),
        classes=per_class(table, model.class_names),
        pairs=confused_pairs(table, model.class_names),
        bins=reliability(probabilities, targets),
        bins_calibrated=bins_calibrated,
        calibration=calibration,
        threshold=threshold,
        views=views,
        comparison=comparison,
        compared_with=compared_with,
        corrupted=corrupted,
        corruptions=corruptions,
        unknown=answers,
        gallery=gallery or Gallery([], []),
        validation=validation,
        labels=labels,
    )


def _further_scores(
    calibration: Calibration | None,
    comparison: PairedComparison | None,
    corruptions: Mapping[str, PairedComparison],
) -> dict[str, float]:
    scores: dict[str, float] = {}
    if calibration is not None:
        scores["temperature"] = calibration.temperature
        scores["ece_calibrated"] = calibration.ece_after
        scores["loss_calibrated"] = calibration.loss_after
    if comparison is not None:
        scores["acc1_difference"] = comparison.difference
        scores["acc1_difference_ci_low"] = comparison.low
        scores["acc1_difference_ci_high"] = comparison.high
        scores["mcnemar_p"] = comparison.mcnemar_p
    for name, corruption in corruptions.items():
        slug = re.sub(r"\W+", "_", name.lower())
        scores[f"robustness_{slug}_acc1"] = corruption.acc1
        scores["robustness_as_recorded_acc1"] = corruption.other_acc1
    return scores
