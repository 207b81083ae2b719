"""Rows of a ground truth: repaired, dropped with a reason, one per clip."""

import pandas as pd
import pytest
from torchvision.models.video import R2Plus1D_18_Weights

from k400tiny_lib.config import Config
from k400tiny_lib.data.sources.ground_truth import ESCAPES_DATA_PATH, clean_rows, make_ground_truth
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


def notes_of(*labels: str) -> str:
    return "\n".join(clean_rows(rows(*((str(n), label) for n, label in enumerate(labels)))).notes)


@pytest.mark.parametrize(
    "spellings",
    [
        ("run", "run\u200b", "\ufeffrun", "r\u00adun", "run\u2060", "run\u200d"),
        ("café", "cafe\u0301"),
        ("می\u200cروم", "میروم"),
        ("A", "a"),
    ],
)
def test_spellings_that_nobody_can_tell_apart_are_one_label_and_noted(
    spellings: tuple[str, ...],
) -> None:
    labels, changed = unify_spelling(pd.Series(spellings))
    assert labels.nunique() == 1
    assert len(changed) == len(spellings) - 1
    notes = notes_of(*spellings, spellings[0])
    assert "are merged" in notes
    assert "(2)" in notes
    assert notes.count("(1)") == len(spellings) - 1


def test_joiners_stay_only_where_they_have_a_meaning() -> None:
    labels = pd.Series(["run\u200dning", "sit\u200c", "می\u200cروم"])
    assert unify_spelling(labels)[0].tolist() == ["running", "sit", "می\u200cروم"]


def test_a_label_of_invisible_characters_is_none() -> None:
    cleaned = clean_rows(rows(("a", "\u200b"), ("b", "x")))
    assert [(d.video, d.reason) for d in cleaned.dropped] == [("a", "it has no label")]


@pytest.mark.parametrize(
    ("one", "other"), [("run", "ｒｕｎ"), ("cat", "cаt"), ("push up!", "push_up!"), ("o", "ο")]
)
def test_labels_that_look_alike_stay_and_are_noted(one: str, other: str) -> None:
    assert unify_spelling(pd.Series([one, other]))[0].tolist() == [one, other]
    assert "look alike" in notes_of(one, other)
    assert notes_of(one, "quite different") == ""


def test_a_near_miss_of_kinetics_is_noted_where_most_labels_are_its_names() -> None:
    notes = notes_of("abseiling", "air_drumming", "answering_question")
    assert "2 of 3 labels are names of Kinetics-400" in notes
    assert "'answering_question' (did you mean 'answering questions'?)" in notes
    assert notes_of("abseiling", "air_drumming") == ""
    assert notes_of("abseiling", "wave", "nod") == ""


SOURCES = {
    "x/v_ApplyEyeMakeup_g08_c01": "v_ApplyEyeMakeup_g08",
    "x/YoYo_g11_c03": "YoYo_g11",
    "x/April_09_brush_hair_u_nm_np1_ba_goo_0": "April_09",
    "x/Faith_Rewarded_brush_hair_f_cm_np2_fr_med_12.avi": "Faith_Rewarded",
    "x/abcdefghijk_000001_000011": "abcdefghijk",
    "x/holiday_g_c": "x/holiday_g_c",
}


def test_names_of_known_data_sets_tell_the_source() -> None:
    table = rows(*((name, "brush_hair") for name in SOURCES))
    truth = make_ground_truth(table, Config())
    assert dict(truth.table[["folder_name", "group"]].to_numpy().tolist()) == SOURCES
    assert truth.sources_known
    notes = "\n".join(truth.notes)
    assert "2 of 6 clips have their source in the name, <class>_g<group>_c<clip> of UCF101" in notes
    assert "2 of 6 clips have their source in the name, <source>_<class>_<body>" in notes
    assert "each of 1 files or folders is its own source" in notes


def test_a_column_youtube_id_beats_the_names() -> None:
    table = rows(("v_X_g01_c01", "x"), ("v_X_g01_c02", "x")).assign(youtube_id=["a", "b"])
    truth = make_ground_truth(table, Config())
    assert truth.table["group"].tolist() == ["a", "b"]
    assert truth.notes == []
    assert not make_ground_truth(table, Config(group_by="none")).sources_known
    assert not make_ground_truth(table.assign(youtube_id=""), Config()).sources_known
