"""Whole sources, every class in every split, nothing twice, from a seed."""

import networkx
import numpy as np
import pandas as pd
import pytest

from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation.splits import (
    assign_splits,
    random_split_leak,
    sources_in_several_splits,
    unite_groups,
)
from k400tiny_lib.errors import UserError


def made_up_clips(seed: int) -> pd.DataFrame:
    """About 300 clips of 5 classes; sources of 1 to 6 clips, one clip in ten shown twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for label in "abcde":
        for source in range(rng.integers(8, 25)):
            name = f"{label}{source}"
            rows += [(name, label, f"{name}-{clip}") for clip in range(rng.integers(1, 7))]
    table = pd.DataFrame(rows, columns=["youtube_id", "label", "content"]).assign(split="")
    copies = rng.choice(len(table), len(table) // 10, replace=False)
    # Copies stay within their class, as re-uploads do.
    for copy in copies:
        same_label = table.index[table["label"] == table["label"][copy]]
        table.loc[copy, "content"] = table["content"][rng.choice(same_label)]
    return table


@pytest.mark.parametrize("seed", range(50))
def test_no_source_and_no_content_stands_in_two_splits(seed: int) -> None:
    table = made_up_clips(seed)
    table["group"] = unite_groups(table["youtube_id"], table["content"])
    table["split"] = assign_splits(table, 0.1, 0.15, seed)
    for column in ("youtube_id", "content", "group"):
        assert table.groupby(column)["split"].nunique().max() == 1
    assert (pd.crosstab(table["label"], table["split"])[list(SPLITS)] > 0).all(axis=None)
    assert sources_in_several_splits(table) == []


def test_same_seed_same_splits_whatever_the_index() -> None:
    table = made_up_clips(0).rename(columns={"youtube_id": "group"})
    first = assign_splits(table, 0.1, 0.1, 7)
    again = assign_splits(table.set_index(table.index + 1000), 0.1, 0.1, 7)
    assert first.tolist() == again.tolist()
    assert first.tolist() != assign_splits(table, 0.1, 0.1, 8).tolist()


def test_united_groups_are_the_connected_components_that_networkx_finds() -> None:
    table = made_up_clips(3)
    graph = networkx.Graph()
    graph.add_edges_from(
        (("group", row.youtube_id), ("content", row.content)) for row in table.itertuples()
    )
    expected = {
        frozenset(name for kind, name in component if kind == "group")
        for component in networkx.connected_components(graph)
    }
    united = unite_groups(table["youtube_id"], table["content"])
    assert {frozenset(ids) for _, ids in table["youtube_id"].groupby(united)} == expected
    assert all(name == min(ids) for name, ids in table["youtube_id"].groupby(united))


def test_shares_come_near_the_wanted_ones() -> None:
    table = pd.DataFrame(
        {"group": [f"{i}" for i in range(1000)], "label": list("ab") * 500}
    ).assign(split="")
    shares = assign_splits(table, 0.1, 0.2, 0).value_counts(normalize=True)
    # Sources of one clip each: whole clips per class can be had, 500 * 0.1 and 500 * 0.2.
    assert shares[list(SPLITS)].tolist() == [0.7, 0.1, 0.2]


def test_official_splits_stay_and_a_missing_one_is_taken_from_train() -> None:
    table = made_up_clips(1).rename(columns={"youtube_id": "group"})
    official = table["group"].str[-1].isin(list("0369")).map({True: "val", False: "train"})
    table["split"] = official
    split = assign_splits(table, 0.1, 0.2, 0)
    assert (split[official == "val"] == "val").all()
    assert set(split[official == "train"]) == {"train", "test"}
    full = table.assign(split=split)
    assert assign_splits(full, 0.1, 0.2, 1).tolist() == split.tolist()


def test_a_random_split_of_pairs_leaks_and_one_of_single_clips_does_not() -> None:
    pairs = pd.DataFrame({"group": np.arange(400) // 2, "label": "x"})
    leaked, held_out = random_split_leak(pairs, 0.1, 0.1, 0)
    # The other clip of a pair is among the 399 others, of which 320 train.
    expected, deviation = 320 / 399, (80 * 0.8 * 0.2) ** 0.5 / 80
    assert held_out == 80
    assert abs(leaked / held_out - expected) < 4 * deviation
    single = pd.DataFrame({"group": np.arange(400), "label": "x"})
    assert random_split_leak(single, 0.1, 0.1, 0) == (0, 80)


def test_sources_with_several_labels_are_divided_with_every_class_in_each_split() -> None:
    rng = np.random.default_rng(0)
    rows = [
        (f"f{source}", label)
        for source in range(30)
        for label in rng.choice(list("abcde"), rng.integers(1, 4), replace=False)
        for _ in range(rng.integers(1, 5))
    ]
    # `rare` is the most frequent label of no source.
    rows += [(f"f{source}", "rare") for source in (0, 1, 2, 3)]
    rows += [(f"f{source}", "a") for source in (0, 1, 2, 3) for _ in range(5)]
    table = pd.DataFrame(rows, columns=["group", "label"]).assign(split="")
    splits = assign_splits(table, 0.1, 0.1, seed=3)
    assert splits.groupby(table["group"]).nunique().eq(1).all()
    assert pd.crosstab(table["label"], splits).gt(0).all(axis=None)
    shares = splits.value_counts(normalize=True)
    assert shares["train"] > 0.5
    pd.testing.assert_series_equal(splits, assign_splits(table, 0.1, 0.1, seed=3))


def test_sources_that_cannot_be_divided_are_refused_in_one_line() -> None:
    # Each class has three sources, but two classes share one of them with all others.
    rows = [("f0", "a"), ("f0", "b"), ("f1", "a"), ("f1", "c"), ("f2", "b"), ("f2", "c")]
    rows += [("f3", "a"), ("f3", "b"), ("f3", "c")]
    table = pd.DataFrame(rows, columns=["group", "label"]).assign(split="")
    with pytest.raises(UserError, match=r"^gt_csv: the sources hold several classes each"):
        assign_splits(table, 0.1, 0.1, seed=0)


def test_official_splits_without_training_clips_are_refused() -> None:
    table = pd.DataFrame({"group": ["a", "b"], "label": ["x", "y"], "split": ["val", "test"]})
    with pytest.raises(UserError, match="hold no training clips"):
        assign_splits(table, 0.1, 0.1, 0)


def test_the_leak_is_counted_with_a_class_of_a_single_clip() -> None:
    labels = ["x"] * 20 + ["y"]  # stratified splits need two clips of each class
    table = pd.DataFrame({"group": ["a"] * 20 + ["b"], "label": labels})
    leaked, held_out = random_split_leak(table, 0.1, 0.1, 0)
    assert held_out == 4
    assert leaked >= 3
