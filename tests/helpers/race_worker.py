"""One of two exports at the same moment: registers a toy model with the predictions of a table.

python -m tests.helpers.race_worker <predictions.csv> <seconds to compare> <file to wait for>
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.scoring import ExportClips
from k400tiny_lib.registry.promotion import PREDICTIONS, Promotion, PromotionDecision
from k400tiny_lib.registry.registry import log_onnx, register
from tests.helpers.evaluation import clips_of
from tests.helpers.export import METADATA, toy_graph

NAME = "raced"


@dataclass(frozen=True)
class SlowPromotion(Promotion):
    """Takes some time to compare."""

    seconds: float = 0.0

    def decide(self, champion: str | None) -> PromotionDecision:
        decision = super().decide(champion)
        time.sleep(self.seconds)
        return decision


def promotion_of(table: pd.DataFrame, policy: str = "better") -> Promotion:
    """The promotion of a version with these predictions."""
    categories = {f"c{number}": number for number in range(probabilities_of(table).shape[1])}
    splits = {"train": [], "val": [], "test": clips_of(table)}
    clips = ExportClips(Annotations(categories, splits, "data"), Path("nowhere"), 4, 1)
    return Promotion(policy, NAME, clips, table)


def export(promotion: Promotion, wait_s: float = 0.0) -> PromotionDecision:
    """Register a version with the predictions of its promotion."""
    assert promotion.predictions is not None
    with mlflow.start_run():
        mlflow.log_text(promotion.predictions.to_csv(index=False), PREDICTIONS)
        uri = log_onnx(toy_graph(), METADATA)
        tags = {"test_digest": promotion.clips.test_digest}
        return register(uri, promotion, tags, wait_s=wait_s)[1]


def main() -> None:
    """Say that all is imported, wait for the start, export."""
    table = pd.read_csv(sys.argv[1], dtype={"video": str, "group": str})
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.02)
    promotion = SlowPromotion(**vars(promotion_of(table)), seconds=float(sys.argv[2]))
    print(export(promotion, wait_s=1.0).text, flush=True)


if __name__ == "__main__":
    main()
