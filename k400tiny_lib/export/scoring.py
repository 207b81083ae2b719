"""An exported model's score on the test clips, which decides about variants and the champion."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd

from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.comparison import align
from k400tiny_lib.evaluation.metrics import score
from k400tiny_lib.evaluation.predictions import PROBABILITY, probabilities_of
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.export.onnx_graph import INPUT
from k400tiny_lib.export.parity import Eager
from k400tiny_lib.export.test_clips import ClipFrames, Predict
from k400tiny_lib.models.loaded import Geometry

_PROBED = 3  # clips that tell whether an evaluation is of this very model
# Between a CPU and a GPU the same model differs by 1e-4 at most.
_SAME_MODEL = 1e-3


def predictor(session: onnxruntime.InferenceSession) -> Predict:
    """The session as a function of frames."""
    return lambda frames: session.run(None, {INPUT: frames})[0]


def acc1(table: pd.DataFrame) -> float:
    """Top-1 of a predictions table, in percent."""
    return 100 * float((table["predicted"] == table["target"]).mean())


def facts_of(table: pd.DataFrame, frames: ClipFrames, geometry: Geometry) -> dict[str, Any]:
    """What the metadata says about the score.

    Returns:
        test_acc1 with its 95 % test_acc1_interval in percent, test_loss, the number of test_clips,
        the protocol, and the digests of the data and of the test split.
    """
    scores = score(table, "test")
    return {
        "test_acc1": scores["test_acc1"],
        "test_acc1_interval": [scores["test_acc1_ci_low"], scores["test_acc1_ci_high"]],
        "test_loss": scores["test_loss"],
        "test_clips": len(table),
        "protocol": ViewProtocol(frames.views, 1).text(geometry),
        "data_digest": frames.annotations.data_digest if frames.annotations else "",
        "test_digest": frames.test_digest,
    }


def read_predictions(path: Path) -> pd.DataFrame:
    """Read a table that was written as CSV.

    Raises:
        UserError: if it is none.
    """
    try:
        return pd.read_csv(path, dtype={"video": str, "group": str})
    except (OSError, ValueError) as error:
        raise UserError(f"evaluation: {path} is no table of predictions ({error}).") from None


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation of the same model found out.

    Attributes:
        temperature: to divide the logits by; 1 where it found that none helps.
        table: its predictions of the test clips, at that temperature.
    """

    temperature: float
    table: pd.DataFrame


def read_evaluation(folder: Path, frames: ClipFrames, eager: Eager) -> Evaluated | str:
    """Read what evaluate wrote, if it is of this model, these clips and these views.

    Args:
        folder: its `evaluation/`.
        frames: the clips.
        eager: the model at temperature 1.

    Returns:
        The evaluation, or why it cannot be used.

    Raises:
        UserError: if the folder is none of evaluate's.
    """
    table = read_predictions(folder / "predictions.csv")
    try:
        calibration = json.loads((folder / "calibration.json").read_text())
        temperature = float(calibration["temperature"]) if calibration["applied"] else 1.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"evaluation: {folder} holds no readable calibration.json "
            f"({type(error).__name__}: {error}). Needed: what evaluate wrote."
        ) from None
    try:
        table = align(table, frames.test)
    except UserError:
        return "it is not of the test clips of these annotations"
    probabilities = probabilities_of(table)
    for clip, expected in zip(frames.test[:_PROBED], probabilities, strict=False):
        found = eager(frames.read(clip)[None])[0]
        if found.shape != expected.shape or np.abs(found - expected).max() > _SAME_MODEL:
            views = f"{frames.views} view(s) of the centre"
            return f"its probabilities of {clip.video} are not this model's on {views}"
    return Evaluated(temperature, rescaled(table, temperature))


def rescaled(table: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """A predictions table at a temperature."""
    scaled = scale(probabilities_of(table), temperature)
    names = [f"{PROBABILITY}{index}" for index in range(scaled.shape[1])]
    others = table.drop(columns=names).assign(confidence=scaled.max(1))
    return pd.concat([others, pd.DataFrame(scaled, columns=names)], axis=1)
