"""The clips that an export is proven, calibrated and scored on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import Annotations, Clip, read_annotations, unknown_labels
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.data.loading.temporal_sampling import view_indices
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.predictions import table_of_probabilities
from k400tiny_lib.export.parity import BATCHES

Predict = Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]]  # (N, T, H, W, 3) -> (N, K)

_NOISE_SIZE = (336, 336)
_CALIBRATION_CLIPS = 32


@dataclass(frozen=True)
class ClipFrames:
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

    def read(self, clip: Clip) -> Tensor:
        """The frames of a clip, one view after the other.

        Raises:
            UserError: if they cannot be read.
        """
        indices = view_indices(clip.num_frames, self.clip_len, self.views) + clip.segment[0]
        return read_frames(self.data_path / clip.video, indices.flatten().tolist())

    def for_parity(self) -> list[Tensor]:
        """As many clips of one size as the largest batch of the proof.

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
        """Up to 32 training clips, evenly over the split, to learn ranges of activations from.

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
        """What the test split is; scores of the same digest can be compared clip by clip."""
        return self.annotations.split_digest("test") if self.annotations else ""

    def unusable(self, class_names: list[str]) -> str:
        """Why a model of these classes cannot be scored on the test clips; "" if it can."""
        if self.annotations is None:
            return "there are no annotations"
        if not self.test:
            return "there are no test clips"
        unknown = unknown_labels(self.annotations.categories, class_names)
        return f"the model does not know {unknown[0]!r} by the data's id" if unknown else ""

    def predictions(self, predict: Predict) -> pd.DataFrame:
        """The predictions table of a model on the test clips, one by one."""
        rows = [predict(self.read(clip)[None].numpy()) for clip in self.test]
        probabilities = np.concatenate(rows).astype(np.float64)
        # float32 rows sum to 1 within 1e-7, and scikit-learn wants the last digit.
        probabilities /= probabilities.sum(1, keepdims=True)
        return table_of_probabilities(self.test, probabilities)


def clip_frames(config: Config, clip_len: int) -> ClipFrames:
    """The clips that export_onnx was given.

    Raises:
        UserError: if the annotations cannot be read.
    """
    given = config.annotations != NONE
    annotations = read_annotations(Path(config.annotations)) if given else None
    return ClipFrames(annotations, Path(config.data_path), clip_len, config.views_in_graph)
