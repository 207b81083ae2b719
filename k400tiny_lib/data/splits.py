"""Train, val and test: whole sources, every class in each, reproducible from a seed."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import GroupShuffleSplit

from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.errors import UserError

_DRAWS = 25  # random draws per class, of which the one nearest to the wanted share of clips stays


def assign_splits(
    table: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int
) -> "pd.Series[str]":
    """Assign each clip to a split, grouped by source and stratified by class.

    Each class is split by itself, so each stands in all three splits; a source that has several
    labels counts for its most frequent one. Classes with few sources get whole sources, hence
    shares that differ from the wanted ones: the data report states the true ones.

    Args:
        table: columns `group` and `label`, one row per clip.
        val_fraction, test_fraction: wanted shares of the clips, in (0, 1).
        seed: the same seed gives the same splits.

    Returns:
        train, val or test for each row.

    Raises:
        UserError: if a class has fewer than three sources.
    """
    strata = table.groupby("group")["label"].agg(lambda labels: labels.mode().iloc[0])
    stratum = table["group"].map(strata)
    split = pd.Series("train", index=table.index)
    for number, (label, rows) in enumerate(table.groupby(stratum, sort=True)):
        groups = rows["group"].to_numpy()
        num_groups = len(np.unique(groups))
        if num_groups < len(SPLITS):
            raise UserError(
                f"gt_csv: class {label!r} has clips of {num_groups} source(s) only, too few for "
                "train, val and test. Needed: three sources, or group_by=none to split clips."
            )
        state = np.random.RandomState([seed, number])
        held = _draw(groups, round(len(rows) * test_fraction), 2, state)
        split.loc[rows.index[held]] = "test"
        rest = np.flatnonzero(~held)
        held_val = _draw(groups[rest], round(len(rows) * val_fraction), 1, state)
        split.loc[rows.index[rest[held_val]]] = "val"
    lost = set(table["label"]) - set(strata)
    if lost:
        raise UserError(
            f"gt_csv: class {min(lost)!r} has no source of its own. Needed: sources with one label."
        )
    return split


def _draw(
    groups: npt.NDArray[np.object_], wanted: int, spare: int, state: np.random.RandomState
) -> npt.NDArray[np.bool_]:
    """Draw whole groups that hold about `wanted` clips, leaving at least `spare` groups."""
    num_groups = len(np.unique(groups))
    size = round(num_groups * wanted / len(groups))
    shuffle = GroupShuffleSplit(
        _DRAWS, test_size=min(max(size, 1), num_groups - spare), random_state=state
    )
    draws = [held for _, held in shuffle.split(groups, groups=groups)]
    best = min(draws, key=lambda held: abs(len(held) - max(wanted, 1)))
    mask = np.zeros(len(groups), dtype=bool)
    mask[best] = True
    return mask
