"""Train, val and test: whole sources, every class in each, reproducible from a seed."""

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from k400tiny_lib.errors import UserError

_DRAWS = 25  # random draws per class, of which the one nearest to the wanted share of clips stays


def unite_groups(groups: "pd.Series[str]", contents: "pd.Series[str]") -> "pd.Series[str]":
    """Make one group of all groups that share a content.

    A clip that was uploaded twice has two sources by name and one in truth.

    Args:
        groups: the source of each clip.
        contents: the digest of what each clip shows.

    Returns:
        The groups, united ones under the name that comes first in the alphabet.
    """
    group_ids, names = pd.factorize(groups, sort=True)
    content_ids, _ = pd.factorize(contents)
    # Groups and contents are the nodes of a graph, clips its edges.
    size = len(names) + content_ids.max(initial=-1) + 1
    edges = (group_ids, content_ids + len(names))
    graph = coo_array((np.ones(len(groups), dtype=np.int8), edges), shape=(size, size))
    _, component = connected_components(graph, directed=False)
    _, first = np.unique(component[: len(names)], return_index=True)
    representative = dict(zip(component[first], first, strict=True))
    united = [representative[component[group]] for group in group_ids]
    return pd.Series(np.asarray(names)[united], index=groups.index, dtype=object)


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
    return _hold_out(table, {"test": test_fraction, "val": val_fraction}, seed)


def complete_official_splits(
    table: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int
) -> "pd.Series[str]":
    """Keep the splits that a data set comes with; one that is missing is taken from train.

    Args:
        table: columns `group`, `label` and `split`, one row per clip.
        val_fraction, test_fraction: shares of the training clips, for a split that is missing.
        seed: the same seed gives the same splits.

    Returns:
        train, val or test for each row.

    Raises:
        UserError: if there are no training clips, or too few sources to take a split from.
    """
    split = table["split"].copy()
    fractions = {"test": test_fraction, "val": val_fraction}
    wanted = {name: f for name, f in fractions.items() if not (split == name).any()}
    train = table[split == "train"]
    if train.empty:
        raise UserError("gt_csv: its splits hold no training clips. Or use_official_splits=False.")
    if wanted:
        split.loc[train.index] = _hold_out(train, wanted, seed)
    return split


def _hold_out(table: pd.DataFrame, wanted: dict[str, float], seed: int) -> "pd.Series[str]":
    """Take whole sources of each class out of train."""
    stratum = table["group"].map(_main_labels(table))
    lost = set(table["label"]) - set(stratum)
    if lost:
        raise UserError(
            f"gt_csv: class {min(lost)!r} has no source of its own. Needed: sources with one label."
        )
    split = np.full(len(table), "train", dtype=object)
    group_ids, _ = pd.factorize(table["group"], sort=True)
    stratum_ids, labels = pd.factorize(stratum, sort=True)
    by_class = np.split(
        np.argsort(stratum_ids, kind="stable"), np.cumsum(np.bincount(stratum_ids))[:-1]
    )
    for number, (label, rest) in enumerate(zip(labels, by_class, strict=True)):
        needed = len(wanted) + 1
        num_groups, num_clips = len(np.unique(group_ids[rest])), len(rest)
        if num_groups < needed:
            raise UserError(
                f"gt_csv: class {label!r} has clips of {num_groups} source(s) only, too few for "
                f"{needed} splits. Needed: {needed} sources, or group_by=none to split clips."
            )
        state = np.random.RandomState([seed, number])
        for spare, (name, fraction) in zip(range(needed - 1, 0, -1), wanted.items(), strict=True):
            held = _draw(group_ids[rest], round(num_clips * fraction), spare, state)
            split[rest[held]] = name
            rest = rest[~held]
    return pd.Series(split, index=table.index)


def _main_labels(table: pd.DataFrame) -> "pd.Series[str]":
    """The most frequent label of each group, the first in the alphabet among equals."""
    counts = table.groupby(["group", "label"], sort=True).size().reset_index(name="clips")
    counts = counts.sort_values(["group", "clips"], ascending=[True, False], kind="stable")
    return counts.drop_duplicates("group").set_index("group")["label"]


def _draw(
    groups: npt.NDArray[np.int64], wanted: int, spare: int, state: np.random.RandomState
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


def shared_sources(table: pd.DataFrame) -> int:
    """How many groups have clips in more than one split (column `split`)."""
    return int((table.groupby("group")["split"].nunique() > 1).sum())


def random_split_leak(
    table: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int
) -> tuple[int, int]:
    """What a random split of clips, stratified by class, would have leaked.

    Args:
        table: columns `group` and `label`, one row per clip.
        val_fraction, test_fraction, seed: as for `assign_splits`.

    Returns:
        The clips held out for val and test whose source stands in train too, and all held out.
    """
    labels = table["label"]
    held_out = round(len(table) * (val_fraction + test_fraction))
    held_out = min(max(held_out, 1), len(table) - 1)
    stratify = labels
    if labels.value_counts().min() < 2 or min(held_out, len(table) - held_out) < labels.nunique():
        stratify = None  # scikit-learn cannot stratify so few clips
    train, rest = train_test_split(
        np.arange(len(table)), test_size=held_out, random_state=seed, stratify=stratify
    )
    groups, _ = pd.factorize(table["group"])
    return int(np.isin(groups[rest], groups[train]).sum()), len(rest)
