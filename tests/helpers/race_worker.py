"""One of two exports at the same moment: registers a toy model with given predictions.

python -m tests.helpers.race_worker <predictions.csv> <seconds to compare> <file to wait for>
"""

import sys
import time
from pathlib import Path

import mlflow
import pandas as pd

from k400tiny_lib.data.annotations import Annotations
from k400tiny_lib.evaluation.predictions import probabilities_of
from k400tiny_lib.export.test_clips import ClipFrames
from k400tiny_lib.registry.contest import Contest
from k400tiny_lib.registry.promotion import Verdict
from k400tiny_lib.registry.registry import PREDICTIONS, log_onnx, register
from tests.helpers.evaluation import clips_of
from tests.helpers.export import METADATA, toy_graph

NAME = "raced"


def contest_of(table: pd.DataFrame) -> Contest:
    """A contest on the clips of a table."""
    categories = {f"c{number}": number for number in range(probabilities_of(table).shape[1])}
    splits = {"train": [], "val": [], "test": clips_of(table)}
    frames = ClipFrames(Annotations(categories, splits, "data"), Path("nowhere"), 4, 1)
    return Contest(NAME, frames, table, "")


def export(table: pd.DataFrame, seconds: float = 0.0) -> Verdict:
    """Register a version with these predictions."""
    contest = contest_of(table)

    def slowly(version: str) -> Verdict:
        verdict = contest.against(version)
        time.sleep(seconds)
        return verdict

    with mlflow.start_run():
        mlflow.log_text(table.to_csv(index=False), PREDICTIONS)
        uri = log_onnx(toy_graph(), METADATA)
        tags = {"test_digest": contest.frames.test_digest}
        return register(uri, NAME, tags, "better", slowly)[1]


def main() -> None:
    """Say that all is imported, wait for the start, export."""
    table = pd.read_csv(sys.argv[1], dtype={"video": str, "group": str})
    print("ready", flush=True)
    while not Path(sys.argv[3]).exists():
        time.sleep(0.02)
    print(export(table, float(sys.argv[2])).text, flush=True)


if __name__ == "__main__":
    main()
