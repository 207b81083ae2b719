"""Split clips into train, val and test: by whole sources, with every class in each split."""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
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


def splits_to_draw(table: pd.DataFrame) -> tuple[str, ...]:
    """The splits that are taken from train: all without official splits, else those missing."""
    return tuple(name for name in ("test", "val") if name not in set(table["split"]))


def source_counts(table: pd.DataFrame) -> dict[str, int]:
    """How many sources each class has; one with several labels counts for each of them."""
    counts = table.groupby("label", sort=True)["group"].nunique()
    return {str(label): int(count) for label, count in counts.items()}


def unsplittable_classes(table: pd.DataFrame, num_splits: int) -> set[str]:
    """The classes that must stay in train when those with too few sources do.

    A source is in one split with all of its clips. So other classes that share sources with a rare
    class may have too few that are left.

    Args:
        table: columns `group` and `label`, one row per clip that may be held out.
        num_splits: sources that a class needs.
    """
    kept: set[str] = set()
    while True:
        rest = _without_sources_of(table, kept)
        counts = source_counts(rest)
        more = {n for n in set(table["label"]) - kept if counts.get(n, 0) < num_splits}
        if not more:
            return kept
        kept |= more


def _without_sources_of(table: pd.DataFrame, labels: Collection[str]) -> pd.DataFrame:
    groups = table.loc[table["label"].isin(labels), "group"]
    return table[~table["group"].isin(groups)]


def assign_splits(
    table: pd.DataFrame,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    train_only: Collection[str] = (),
) -> "pd.Series[str]":
    """Assign each clip to a split, grouped by source and stratified by class.

    Every class is in all splits that are drawn. A source with several labels counts for its most
    frequent one, unless some class needs more sources than it is the most frequent label of: then
    whole sources are divided such that each split has all of their labels. Classes with few sources
    can only approximate the fractions; the data report has the resulting ones.

    Args:
        table: columns group, label and split (the official one, empty where there are none), one
            row per clip. Official splits are kept, and those that are missing taken from train.
            Each class that is not in `train_only` has a source for each split to be drawn.
        val_fraction, test_fraction: shares of the clips, or of the official train, in (0, 1).
        seed: the same seed gives the same splits.
        train_only: classes whose sources stay in train.

    Returns:
        train, val or test for each row.

    Raises:
        UserError: if there are no training clips, or the sources of several classes cannot be
            divided.
    """
    split = table["split"].where(table["split"] != "", "train")
    train = table[split == "train"]
    if train.empty:
        raise UserError("gt_csv: its splits hold no training clips. Or use_official_splits=False.")
    fractions = {"test": test_fraction, "val": val_fraction}
    if missing := {name: fractions[name] for name in splits_to_draw(table)}:
        split.loc[train.index] = _hold_out(train, missing, seed, train_only)
    return split


def _hold_out(
    table: pd.DataFrame, fractions: dict[str, float], seed: int, train_only: Collection[str]
) -> "pd.Series[str]":
    """Take whole sources of each class out of train: a share of the clips for each split."""
    splits = pd.Series("train", table.index, dtype=object)
    table = _without_sources_of(table, train_only)
    main = _main_labels(table)
    if set(table["label"]) - set(main) or main.value_counts().min() <= len(fractions):
        splits.loc[table.index] = _divide_mixed(table, fractions, seed)
        return splits
    index, main_label = table.index, table["group"].map(main)
    groups = pd.factorize(table["group"], sort=True)[0]
    table = pd.DataFrame({"group": groups, "label": main_label.to_numpy(), "split": "train"})
    for number, (_, rest) in enumerate(table.groupby("label", sort=True)):
        num_clips = len(rest)
        random = np.random.RandomState([seed, number])
        for done, (name, fraction) in enumerate(fractions.items()):
            num_spared = len(fractions) - done  # a source for each split that is left, and train
            held_out = _draw(rest["group"], round(num_clips * fraction), num_spared, random)
            table.loc[held_out, "split"] = name
            rest = rest.drop(held_out)
    splits.loc[index] = table["split"].to_numpy()
    return splits


def _divide_mixed(table: pd.DataFrame, fractions: dict[str, float], seed: int) -> list[str]:
    """Divide sources with several labels each, such as long videos with labeled segments.

    Of several random divisions with every class in every split, the one whose splits have the
    shares nearest to the fractions.
    """
    groups, group_names = pd.factorize(table["group"], sort=True)
    labels, label_names = pd.factorize(table["label"], sort=True)
    clips = np.zeros((len(group_names), len(label_names)), int)
    np.add.at(clips, (groups, labels), 1)
    names = [*fractions, "train"]
    shares = np.array([*fractions.values(), 1 - sum(fractions.values())])
    generators = [np.random.RandomState([seed, draw]) for draw in range(_DRAWS)]
    draws = [_divide(clips, shares, generator) for generator in generators]
    divisions = [division for division in draws if division is not None]
    if not divisions:
        fewest = min(source_counts(table).items(), key=lambda item: item[1])
        raise UserError(
            f"gt_csv: the sources hold several classes each, and no division of them has every "
            f"class in {len(names)} splits. Needed: more sources, above all of class {fewest[0]!r} "
            f"({fewest[1]})."
        )

    def distance(division: npt.NDArray[np.int64]) -> float:
        sizes = np.bincount(division, clips.sum(1), len(shares))
        return float(np.abs(sizes / clips.sum() - shares).sum())

    best = min(divisions, key=distance)
    return [names[best[group]] for group in groups]


def _divide(
    clips: npt.NDArray[np.int64], shares: npt.NDArray[np.float64], random: np.random.RandomState
) -> npt.NDArray[np.int64] | None:
    """One random division: the split of each source, or None where a class lacks a source.

    Args:
        clips: (sources, classes), how many clips a source has of a class.
        shares: (splits,), of the clips.
        random: the generator.
    """
    has = clips > 0
    division = np.full(len(clips), -1)
    order = random.permutation(len(clips))
    lacking = np.ones((len(shares), clips.shape[1]), bool)  # splits without a class
    while lacking.any():
        free = has & (division < 0)[:, None]
        spare = np.where(lacking.any(0), free.sum(0) - lacking.sum(0), np.iinfo(np.int64).max)
        label = int(spare.argmin())  # the class with the least choice first
        split = int(lacking[:, label].argmax())
        candidates = order[free[order, label]]
        if not candidates.size:
            return None
        gains = (has[candidates] & lacking[split]).sum(1)
        chosen = candidates[int((gains - clips[candidates].sum(1) / clips.sum()).argmax())]
        division[chosen] = split
        lacking[split] &= ~has[chosen]
    sizes = np.array([clips[division == split].sum() for split in range(len(shares))])
    for source in order[division[order] < 0]:
        split = int((shares * clips.sum() - sizes).argmax())
        division[source] = split
        sizes[split] += clips[source].sum()
    return division


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


def sources_in_several_splits(table: pd.DataFrame) -> list[str]:
    """The groups that have clips in more than one split (column `split`), sorted."""
    splits = table.groupby("group")["split"].nunique()
    return sorted(splits.index[splits > 1])


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
