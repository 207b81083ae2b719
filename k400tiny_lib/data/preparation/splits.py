"""Split clips into train, val and test: by whole sources, with every class in each split."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from k400tiny_lib.errors import UserError

_DRAWS = 25  # random draws per class and split; the one nearest to the share of clips is used


def unite_groups(groups: "pd.Series[str]", contents: "pd.Series[str]") -> "pd.Series[str]":
    """Merge groups that share a content: a video that was uploaded twice has two source ids.

    Both have one entry per clip, the result too; merged groups have the name that sorts first.
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

    Every class is in all three splits. A source with several labels counts for its most frequent
    one. Classes with few sources can only approximate the fractions; the data report has the
    resulting ones.

    Args:
        table: columns `group` and `label`, one row per clip.
        val_fraction, test_fraction: shares of the clips, in (0, 1).
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
    """Keep the official splits of a data set; take a missing one from train.

    Args:
        table: columns `group`, `label` and `split`, one row per clip.
        val_fraction, test_fraction: shares of the training clips, for a split that is missing.
        seed: as for `assign_splits`, which has the same result.

    Raises:
        UserError: if there are no training clips, or too few sources to take a split from.
    """
    split = table["split"].copy()
    train = table[split == "train"]
    if train.empty:
        raise UserError("gt_csv: its splits hold no training clips. Or use_official_splits=False.")
    fractions = {"test": test_fraction, "val": val_fraction}
    if missing := {name: fractions[name] for name in fractions if name not in set(split)}:
        split.loc[train.index] = _hold_out(train, missing, seed)
    return split


def _hold_out(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> "pd.Series[str]":
    """Take whole sources of each class out of train: a share of the clips for each split."""
    main_label = table["group"].map(_main_labels(table))
    if without_source := set(table["label"]) - set(main_label):
        raise UserError(
            f"gt_csv: class {min(without_source)!r} is not the main label of any source. Needed: "
            "sources with one label."
        )
    index = table.index
    groups = pd.factorize(table["group"], sort=True)[0]
    table = pd.DataFrame({"group": groups, "label": main_label.to_numpy(), "split": "train"})
    for number, (label, rest) in enumerate(table.groupby("label", sort=True)):
        num_clips, num_groups, num_splits = len(rest), rest["group"].nunique(), len(fractions) + 1
        if num_groups < num_splits:
            raise UserError(
                f"gt_csv: class {label!r} has clips of {num_groups} source(s) only, too few for "
                f"{num_splits} splits. Needed: {num_splits} sources, or group_by=none to split "
                "clips."
            )
        random = np.random.RandomState([seed, number])
        for done, (name, fraction) in enumerate(fractions.items()):
            num_spared = len(fractions) - done  # a source for each split that is left, and train
            held_out = _draw(rest["group"], round(num_clips * fraction), num_spared, random)
            table.loc[held_out, "split"] = name
            rest = rest.drop(held_out)
    return table["split"].set_axis(index)


def _main_labels(table: pd.DataFrame) -> "pd.Series[str]":
    """The most frequent label of each group; of equally frequent ones the one that sorts first."""
    counts = table.groupby(["group", "label"], sort=True).size().reset_index(name="clips")
    counts = counts.sort_values(["group", "clips"], ascending=[True, False], kind="stable")
    return counts.drop_duplicates("group").set_index("group")["label"]


def _draw(
    groups: "pd.Series[int]", num_clips: int, num_spared: int, random: np.random.RandomState
) -> pd.Index:
    """Draw whole groups of about `num_clips` clips, leaving `num_spared`; returns their index."""
    num_groups = groups.nunique()
    size = min(max(round(num_groups * num_clips / len(groups)), 1), num_groups - num_spared)
    shuffle = GroupShuffleSplit(_DRAWS, test_size=size, random_state=random)
    draws = [drawn for _, drawn in shuffle.split(groups, groups=groups)]
    return groups.index[min(draws, key=lambda drawn: abs(len(drawn) - max(num_clips, 1)))]


def shared_sources(table: pd.DataFrame) -> int:
    """How many groups have clips in more than one split (column `split`)."""
    return int((table.groupby("group")["split"].nunique() > 1).sum())


def random_split_leak(
    table: pd.DataFrame, val_fraction: float, test_fraction: float, seed: int
) -> tuple[int, int]:
    """Count the leaks that a random split of clips, stratified by class, would have.

    Args:
        table: columns `group` and `label`, one row per clip.
        val_fraction, test_fraction, seed: as for `assign_splits`.

    Returns:
        How many clips held out for val and test have their source in train, and how many are held
        out.
    """
    labels = table["label"]
    held_out = round(len(table) * (val_fraction + test_fraction))
    held_out = min(max(held_out, 1), len(table) - 1)
    too_few = min(held_out, len(table) - held_out) < labels.nunique()  # for scikit-learn
    stratify = None if too_few or labels.value_counts().min() < 2 else labels
    train, rest = train_test_split(
        np.arange(len(table)), test_size=held_out, random_state=seed, stratify=stratify
    )
    groups, _ = pd.factorize(table["group"])
    return int(np.isin(groups[rest], groups[train]).sum()), len(rest)
