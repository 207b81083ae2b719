"""Rows of a ground truth: repaired, dropped with a reason, one per clip."""

import pandas as pd
import pytest
from torchvision.models.video import R2Plus1D_18_Weights

from k400tiny_lib.data.sources.ground_truth import ESCAPES_DATA_PATH, clean_rows
from k400tiny_lib.data.sources.labels import KINETICS_400, unify_spelling


def rows(*pairs: tuple[str, str]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=["folder_name", "label"], dtype=str)


def test_equal_rows_become_one_and_are_named() -> None:
    cleaned = clean_rows(rows(("b", "x"), ("a", "x"), ("b", "x"), ("./b", "X ")))
    assert cleaned.table["folder_name"].tolist() == ["a", "b"]
    assert cleaned.duplicates == ["b"]
    assert cleaned.dropped == []


def test_contradicting_rows_are_all_dropped_and_name_the_labels() -> None:
    cleaned = clean_rows(rows(("a", "x"), ("b", "x"), ("a", "y")))
    assert cleaned.table["folder_name"].tolist() == ["b"]
    assert [(d.video, d.reason) for d in cleaned.dropped] == [
        ("a", "rows with contradicting labels: x, y")
    ]


@pytest.mark.parametrize("name", ["../a", "/etc", "a/../../b", "..", "."])
def test_a_name_that_leaves_data_path_is_dropped(name: str) -> None:
    cleaned = clean_rows(rows((name, "x"), ("b", "x")))
    assert cleaned.table["folder_name"].tolist() == ["b"]
    assert [d.reason for d in cleaned.dropped] == [ESCAPES_DATA_PATH]


def test_rows_without_name_or_label_are_dropped() -> None:
    cleaned = clean_rows(rows(("", "x"), ("b", "  "), ("c", "x")))
    assert cleaned.table["folder_name"].tolist() == ["c"]
    assert [d.reason for d in cleaned.dropped] == ["a row without a name", "it has no label"]


def test_stray_spaces_and_case_take_the_spelling_of_kinetics() -> None:
    spellings = pd.Series(["Push Up", " push  up", "air_drumming", "push up"])
    labels, changed = unify_spelling(spellings)
    assert labels.tolist() == ["push up", "push up", "air drumming", "push up"]
    assert changed.keys() == {"Push Up", " push  up", "air_drumming"}
    assert set(labels) <= set(KINETICS_400)


def test_other_labels_take_their_most_frequent_spelling() -> None:
    labels, changed = unify_spelling(pd.Series(["Cat", "cat", "Cat ", "Cat", "snake_case"]))
    assert labels.tolist() == ["Cat", "Cat", "Cat", "Cat", "snake_case"]
    assert changed == {"cat": "Cat", "Cat ": "Cat"}


def test_the_class_names_are_those_of_torchvisions_weights_in_their_order() -> None:
    assert list(KINETICS_400) == R2Plus1D_18_Weights.KINETICS400_V1.meta["categories"]
