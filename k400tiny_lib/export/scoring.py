"""The clips that an export is checked, calibrated and scored on, and its score on them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.console import progress
from k400tiny_lib.data.annotations import Annotations, Clip, read_annotations, unknown_labels
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.calibration import scale
from k400tiny_lib.evaluation.comparison import align
from k400tiny_lib.evaluation.metrics import score
from k400tiny_lib.evaluation.predictions import (
    probabilities_of,
    probability_columns,
    read_predictions,
    table_of_probabilities,
)
from k400tiny_lib.evaluation.views import ViewProtocol
from k400tiny_lib.export.parity import BATCHES, Predict
from k400tiny_lib.media.sampling import view_indices
from k400tiny_lib.models.loaded import Geometry

_NOISE_SIZE = (336, 336)
_CALIBRATION_CLIPS = 32
_COMPARED = 3  # clips whose probabilities show whether an evaluation is of this very model
# Between a CPU and a GPU the same model differs by 1e-4 at most.
_SAME_MODEL = 1e-3
_NO_STATEMENT = "The evaluation does not say how the temperature was chosen; it has no threshold."


@dataclass(frozen=True)
class ExportClips:
    """Clips of a data set as a graph takes them: uint8 (views * clip_len, H, W, 3), RGB.

    Attributes:
        annotations: the data, or None where there is none.
        data_path: directory of the clip folders.
        clip_len, views: frames of a view, and views that the graph averages.
    """

    annotations: Annotations | None
    data_path: Path
    clip_len: int
    views: int

    @classmethod
    def of_config(cls, config: Config, clip_len: int) -> "ExportClips":
        """The clips of export_onnx's parameters; raises UserError for unreadable annotations."""
        has_data = config.annotations != NONE
        annotations = read_annotations(Path(config.annotations)) if has_data else None
        return cls(annotations, Path(config.data_path), clip_len, config.views_in_graph)

    def read(self, clip: Clip) -> Tensor:
        """The frames of a clip, one view after the other; raises UserError if unreadable."""
        indices = view_indices(clip.num_frames, self.clip_len, self.views) + clip.segment[0]
        return read_frames(self.data_path / clip.video, indices.flatten().tolist())

    def for_parity(self) -> list[Tensor]:
        """As many clips of one size as the largest batch of the parity check.

        They are of the validation split; noise where there are no annotations.

        Raises:
            UserError: if there are none, or frames cannot be read.
        """
        needed, num_frames = max(BATCHES), self.views * self.clip_len
        if self.annotations is None:
            generator = torch.Generator().manual_seed(0)
            coarse = torch.rand((needed * num_frames, 3, 12, 12), generator=generator)
            smooth = torch.nn.functional.interpolate(coarse, _NOISE_SIZE, mode="bicubic")
            noise = (255 * smooth).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
            return list(noise.unflatten(0, (needed, num_frames)))
        clips = self.annotations.splits["val"]
        if not clips:
            raise UserError("annotations: no validation clips to compare ONNX and PyTorch on.")
        frames_of = [self.read(clip) for clip in clips[:needed]]
        same = [frames for frames in frames_of if frames.shape == frames_of[0].shape]
        return (same * needed)[:needed]

    def for_calibration(self) -> list[Tensor]:
        """Up to 32 training clips, evenly over the split, to measure ranges of activations on.

        Raises:
            UserError: if there are none, or frames cannot be read.
        """
        clips = self.annotations.splits["train"] if self.annotations else []
        if not clips:
            raise UserError("annotations: no training clips to calibrate quantize on.")
        step = max(1, len(clips) // _CALIBRATION_CLIPS)
        return [self.read(clip) for clip in clips[::step][:_CALIBRATION_CLIPS]]

    @property
    def test(self) -> list[Clip]:
        """The test split."""
        return self.annotations.splits["test"] if self.annotations else []

    @property
    def test_digest(self) -> str:
        """Digest of the test split; scores of equal digests can be compared clip by clip."""
        return self.annotations.split_digest("test") if self.annotations else ""

    def reason_not_to_score(self, class_names: list[str]) -> str:
        """Why a model of these classes cannot be scored on the test clips; "" if it can."""
        if self.annotations is None:
            return "there are no annotations"
        if not self.test:
            return "there are no test clips"
        unknown = unknown_labels(self.annotations.categories, class_names)
        return f"the model does not know {unknown[0]!r} by the data's id" if unknown else ""

    def predictions(self, predict: Predict) -> pd.DataFrame:
        """The predictions table of a model on the test clips, one by one."""
        clips = progress(self.test, len(self.test), "score")
        rows = [predict(self.read(clip)[None]) for clip in clips]
        probabilities = np.concatenate(rows).astype(np.float64)
        # float32 rows sum to 1 within 1e-7, and scikit-learn wants the last digit.
        probabilities /= probabilities.sum(1, keepdims=True)
        return table_of_probabilities(self.test, probabilities)

    def score(self, table: pd.DataFrame, geometry: Geometry) -> dict[str, Any]:
        """The score of a predictions table of the test clips, for the metadata.

        Returns:
            test_acc1 with its 95 % test_acc1_interval in percent, test_loss, the numbers of
            test_clips and of test_classes that occur in them, the protocol, and the digests of the
            data and of the test split.
        """
        scores = score(table, "test")
        return {
            "test_acc1": scores["test_acc1"],
            "test_acc1_interval": [scores["test_acc1_ci_low"], scores["test_acc1_ci_high"]],
            "test_loss": scores["test_loss"],
            "test_clips": len(table),
            "test_classes": table["target"].nunique(),
            "protocol": ViewProtocol(self.views, 1).text(geometry),
            "data_digest": self.annotations.data_digest if self.annotations else "",
            "test_digest": self.test_digest,
        }


def top1(table: pd.DataFrame) -> float:
    """Top-1 accuracy of a predictions table, in percent."""
    return 100 * float((table["predicted"] == table["target"]).mean())


@dataclass(frozen=True)
class Calibrated:
    """What an export takes from an evaluation; without one, neither temperature nor threshold.

    Attributes:
        temperature: 1 where none is applied.
        confidence_threshold: at that temperature, in [0, 1]; 0 where there is none. A variant keeps
            the threshold of float32: its probabilities are those of float32, but for its rounding.
        statement: how both were chosen, or why not, in words.
        predictions: the predictions table of the test clips at the temperature, None without an
            evaluation.
    """

    temperature: float = 1.0
    confidence_threshold: float = 0.0
    statement: str = (
        "Probabilities are not calibrated and there is no confidence threshold: the model was "
        "exported without the results of evaluate."
    )
    predictions: pd.DataFrame | None = None

    @property
    def metadata(self) -> dict[str, Any]:
        """The facts that are written into the graph."""
        return {
            "temperature": self.temperature,
            "confidence_threshold": self.confidence_threshold,
            "calibration": self.statement,
        }


def read_evaluation(folder: Path, clips: ExportClips, eager: Predict) -> Calibrated | str:
    """Read the results of evaluate, if they are of this model, these clips and these views.

    Args:
        folder: its `evaluation/`.
        clips: the clips.
        eager: the model at temperature 1.

    Returns:
        What it gives, or why it cannot be used.

    Raises:
        UserError: if the folder was not written by evaluate.
    """
    table = read_predictions(folder / "predictions.csv", "evaluation")
    try:
        calibration = json.loads((folder / "calibration.json").read_text())
        temperature = float(calibration["temperature"]) if calibration["applied"] else 1.0
        # Evaluations of earlier versions have neither.
        threshold = float(calibration.get("confidence_threshold", 0))
        statement = str(calibration.get("statement", _NO_STATEMENT))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"evaluation: {folder} holds no readable calibration.json "
            f"({type(error).__name__}: {error}). Needed: what evaluate wrote."
        ) from None
    try:
        table = align(table, clips.test, "evaluation")
    except UserError:
        return "it is not of the test clips of these annotations"
    probabilities = probabilities_of(table)
    for clip, stored in zip(clips.test[:_COMPARED], probabilities, strict=False):
        ours = eager(clips.read(clip)[None])[0]
        if ours.shape != stored.shape or np.abs(ours - stored).max() > _SAME_MODEL:
            views = f"{clips.views} view(s) of the center"
            return f"its probabilities of {clip.video} are not this model's on {views}"
    scaled = scale(probabilities, temperature)
    table = table.assign(confidence=scaled.max(1), **probability_columns(scaled))
    return Calibrated(temperature, threshold, statement, table)
