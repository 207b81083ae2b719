"""Which of two models is the better one on the same test clips.

Better means: more clips right; where these are equal, a lower loss. That orders any number of
models the same way for everybody, so that exports at the same moment end with the same champion.
The interval of the paired difference and McNemar's test say whether a difference is more than
chance; they are reported, and not required: no order follows from them, and a small test split
would never see a new champion.
"""

from dataclasses import dataclass

import pandas as pd

from k400tiny_lib.evaluation.calibration import loss_at
from k400tiny_lib.evaluation.comparison import compare_tables
from k400tiny_lib.evaluation.predictions import probabilities_of

_LOSS_DIGITS = 4  # beyond them two runs of one model differ


@dataclass(frozen=True)
class Verdict:
    """Whether a new version takes the name `champion`, and why."""

    promoted: bool
    reason: str

    @property
    def text(self) -> str:
        """The verdict as a tag."""
        return f"{'champion' if self.promoted else 'challenger'}: {self.reason}"


def judge(table: pd.DataFrame, other: pd.DataFrame, other_name: str) -> Verdict:
    """Whether a model beats another one.

    Args:
        table, other: predictions tables of the two, of the same clips in the same order.
        other_name: for the reason.
    """
    found = compare_tables(table, other)
    ours, theirs = strength(table), strength(other)
    reason = (
        f"top-1 {found.acc1:.1f} % against {found.other_acc1:.1f} % of {other_name} on the same "
        f"{len(table)} clips (difference {found.difference:+.1f}, 95 % interval {found.low:+.1f} "
        f"to {found.high:+.1f}, McNemar p {found.mcnemar_p:.2g})"
    )
    if ours[0] == theirs[0]:
        reason += f", loss {-ours[1]:.4f} against {-theirs[1]:.4f}"
    return Verdict(ours > theirs, reason)


def strength(table: pd.DataFrame) -> tuple[int, float]:
    """What models are ordered by: clips right, and the negative loss in four digits."""
    targets = table["target"].to_numpy()
    loss = loss_at(probabilities_of(table), targets, 1.0)
    return int((table["predicted"] == table["target"]).sum()), -round(loss, _LOSS_DIGITS)
