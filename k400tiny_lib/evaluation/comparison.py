"""Two models on the same clips: is the difference more than chance?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import binomtest

from k400tiny_lib.data.annotations import Clip, unknown_labels
from k400tiny_lib.data.loading.readers import read_frames
from k400tiny_lib.data.loading.temporal_sampling import view_indices
from k400tiny_lib.errors import UserError
from k400tiny_lib.evaluation.metrics import grouped_bootstrap
from k400tiny_lib.evaluation.predictions import Rows, make_table
from k400tiny_lib.evaluation.views import Protocol

_NEEDED = ("video", "target", "predicted")


@dataclass(frozen=True)
class Comparison:
    """A paired comparison; accuracies and their difference in percent.

    Attributes:
        acc1, other_acc1: of this model and of the other one.
        difference: acc1 - other_acc1.
        low, high: 95 % interval of the difference, resampling sources.
        only_this, only_other: clips that only one of the two labels correctly.
        mcnemar_p: exact McNemar test of equal accuracy. It takes clips for independent, which
            clips of one source are not: the interval is the more careful of the two.
    """

    acc1: float
    other_acc1: float
    difference: float
    low: float
    high: float
    only_this: int
    only_other: int
    mcnemar_p: float


def align(other: pd.DataFrame, clips: Sequence[Clip]) -> pd.DataFrame:
    """Put the predictions of another evaluation in the order of these clips.

    Raises:
        UserError: if they are no predictions, or of other clips, or give a clip another target.
    """
    missing = [column for column in _NEEDED if column not in other.columns]
    if missing:
        raise UserError(
            f"compare_with: its predictions have no column {missing[0]!r}. "
            "Needed: predictions.csv of evaluate."
        )
    own, its = {clip.video for clip in clips}, set(other["video"].astype(str))
    if own != its or len(other) != len(clips):
        raise UserError(
            f"compare_with: it was evaluated on other clips ({len(own & its)} of {len(own)} in "
            f"common, first difference {min(own ^ its, default='a clip that occurs twice')}). "
            "Needed: the same split of the same data."
        )
    order = [clip.video for clip in clips]
    aligned = other.set_index(other["video"].astype(str)).loc[order].reset_index(drop=True)
    if not np.array_equal(aligned["target"], [clip.target for clip in clips]):
        raise UserError("compare_with: its targets differ. Needed: the same classes and ids.")
    return aligned


def compare(table: pd.DataFrame, other: pd.DataFrame) -> Comparison:
    """Compare two predictions tables whose rows are of the same clips; see `align`."""
    this_right = (table["predicted"] == table["target"]).to_numpy()
    other_right = (other["predicted"] == other["target"]).to_numpy()
    return paired(this_right, other_right, table["group"])


def paired(
    this_right: npt.NDArray[np.bool_], other_right: npt.NDArray[np.bool_], groups: "pd.Series[str]"
) -> Comparison:
    """Compare what two models got right, clip by clip.

    Args:
        this_right, other_right: bool (N,), in the same order of clips.
        groups: the source of each clip.
    """
    gain = pd.Series(this_right.astype(np.float64) - other_right, index=groups.index)
    only_this = int((this_right & ~other_right).sum())
    only_other = int((other_right & ~this_right).sum())
    per_group = gain.groupby(groups).mean()
    if per_group.nunique() == 1 and per_group.iloc[0] == 0:
        low = high = 0.0  # no clip is told apart
    elif len(per_group) < 2:
        low, high = -1.0, 1.0  # a single source says nothing about others
    else:
        low, high = grouped_bootstrap(gain, groups)
    discordant = only_this + only_other
    p_value = binomtest(only_this, discordant, 0.5).pvalue if discordant else 1.0
    return Comparison(
        acc1=100 * float(this_right.mean()),
        other_acc1=100 * float(other_right.mean()),
        difference=100 * float(gain.mean()),
        low=100 * low,
        high=100 * high,
        only_this=only_this,
        only_other=only_other,
        mcnemar_p=float(p_value),
    )


def predict_frames(
    predict: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.float32]],
    class_names: Sequence[str],
    clip_len: int,
    clips: Sequence[Clip],
    categories: Mapping[str, int],
    data_path: Path,
    protocol: Protocol,
) -> pd.DataFrame:
    """The predictions table of a model that takes frames as they are and crops the centre itself.

    Args:
        predict: uint8 (N, T, H, W, 3), RGB, to probabilities (N, K); a registered model does so.
        class_names: its labels by class id.
        clip_len: frames that it takes.
        clips: the split.
        categories: label to class id of the data.
        data_path: directory of the clip folders.
        protocol: the views to average.

    Raises:
        UserError: if it has other classes, or the protocol more than the centre crop.
    """
    if unknown := unknown_labels(categories, class_names):
        raise UserError(
            f"compare_with: the model does not know {unknown[0]!r} by the data's id. "
            "Needed: a model of the same classes."
        )
    if protocol.num_crops != 1:
        raise UserError("num_crops: a registered model crops the centre itself. Needed: 1.")
    averaged = []
    for clip in clips:
        times = view_indices(clip.num_frames, clip_len, protocol.num_clips) + clip.segment[0]
        frames = read_frames(data_path / clip.video, times.flatten().tolist())
        views = frames.unflatten(0, (protocol.num_clips, clip_len)).numpy()
        averaged.append(np.concatenate([predict(view[None]) for view in views]).mean(0))
    probabilities = np.stack(averaged).astype(np.float64)
    rows = Rows(np.arange(len(clips)), probabilities, probabilities.argmax(1))
    return make_table(clips, [rows])
