"""Everything that follows from the predictions: gathered once, for the run and for the page."""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from k400tiny_lib.evaluation.calibration import Calibration, calibrate, scale
from k400tiny_lib.evaluation.comparison import Comparison, compare, paired
from k400tiny_lib.evaluation.metrics import confused_pairs, per_class, reliability, score
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.evaluation.robustness import robustness


@dataclass(frozen=True)
class Findings:
    """What a predictions table says.

    Attributes:
        split: its name.
        table: the predictions table.
        scores: see `metrics.score`, with those of the parts below.
        classes: see `metrics.per_class`.
        pairs: see `metrics.confused_pairs`.
        bins: see `metrics.reliability`.
        bins_scaled: the same at the fitted temperature.
        calibration: None without clips to fit a temperature on.
        views: averaged views against the centre view; None where they are the same.
        comparison: with another model, if asked for.
        conditions: see `robustness.robustness`; empty where it was not measured.
        num_probed: clips that the conditions were measured on.
    """

    split: str
    table: pd.DataFrame
    scores: dict[str, float]
    classes: pd.DataFrame
    pairs: pd.DataFrame
    bins: pd.DataFrame
    bins_scaled: pd.DataFrame | None
    calibration: Calibration | None
    views: Comparison | None
    comparison: Comparison | None
    conditions: dict[str, Comparison]
    num_probed: int

    def score(self, name: str) -> float:
        """One of the scores, without the split's prefix."""
        return self.scores[f"{self.split}_{name}"]

    @property
    def calibration_json(self) -> str:
        """The temperature for those who use the model, as JSON."""
        found = dataclasses.asdict(self.calibration) if self.calibration else {"applied": False}
        return json.dumps(found, indent=1)

    def summary(self, protocol: str) -> str:
        """The headline in one line."""
        return (
            f"{self.split}: top-1 {self.score('acc1'):.1f} % (95 % interval "
            f"{self.score('acc1_ci_low'):.1f} to {self.score('acc1_ci_high'):.1f}) on "
            f"{len(self.table)} clips of {self.table['group'].nunique()} sources. {protocol}"
        )


def find(
    split: str,
    table: pd.DataFrame,
    class_names: Sequence[str],
    *,
    averages: bool,
    fitting: pd.DataFrame | None,
    probes: pd.DataFrame | None,
    other: pd.DataFrame | None,
) -> Findings:
    """Compute all scores from predictions.

    Args:
        split: name of the split.
        table: its predictions table.
        class_names: labels by class id.
        averages: whether more than one view was averaged.
        fitting: predictions of the validation clips, to fit a temperature on.
        probes: the table of `robustness.probe_table`.
        other: predictions of another model to compare with, its rows as those of `table`.
    """
    probabilities, targets = probabilities_of(table), table["target"].to_numpy()
    calibration = calibrate(fitting, table) if fitting is not None else None
    right, clip_right = (
        (table[name] == table["target"]).to_numpy() for name in ("predicted", "clip_predicted")
    )
    comparison = compare(table, other) if other is not None else None
    conditions = robustness(probes) if probes is not None else {}
    return Findings(
        split=split,
        table=table,
        scores=score(table, split) | _further_scores(split, calibration, comparison, conditions),
        classes=per_class(table, class_names),
        pairs=confused_pairs(table, class_names),
        bins=reliability(probabilities, targets),
        bins_scaled=(
            reliability(scale(probabilities, calibration.temperature), targets)
            if calibration is not None
            else None
        ),
        calibration=calibration,
        views=paired(right, clip_right, table["group"]) if averages else None,
        comparison=comparison,
        conditions=conditions,
        num_probed=0 if probes is None else len(probes),
    )


def _further_scores(
    split: str,
    calibration: Calibration | None,
    comparison: Comparison | None,
    conditions: dict[str, Comparison],
) -> dict[str, float]:
    scores: dict[str, float] = {}
    if calibration is not None:
        scores |= {
            "temperature": calibration.temperature,
            "ece_calibrated": calibration.ece_after,
            "loss_calibrated": calibration.loss_after,
        }
    if comparison is not None:
        scores |= {
            "acc1_difference": comparison.difference,
            "acc1_difference_ci_low": comparison.low,
            "acc1_difference_ci_high": comparison.high,
            "mcnemar_p": comparison.mcnemar_p,
        }
    for name, found in conditions.items():
        slug = re.sub(r"\W+", "_", name.lower())
        scores[f"robustness_{slug}_acc1"] = found.acc1
        scores["robustness_as_recorded_acc1"] = found.other_acc1
    return {f"{split}_{name}": float(value) for name, value in scores.items()}
