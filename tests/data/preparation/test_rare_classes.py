"""Rare classes and copies: what becomes of them is said, and no source is divided."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.prepare import Prepared, Refused, prepare
from k400tiny_lib.data.preparation.splits import (
    assign_splits,
    sources_in_several_splits,
    unsplittable_classes,
)
from k400tiny_lib.data.sources.base import open_source
from k400tiny_lib.tracking.data_log import describe
from tests.conftest import write_clip
from tests.helpers.damages import cut


def class_folders(root: Path, counts: Mapping[str, int]) -> Path:
    """Class folders with so many clips, all different."""
    seed = 0
    for label, count in counts.items():
        for number in range(count):
            write_clip(root / label / f"{label}{number}", seed=seed)
            seed += 1
    return root


def run(data: Path, **parameters: object) -> Prepared:
    config = Config(data_path=str(data), output_dir=str(data.parent / "out"), **parameters)
    return prepare(config, open_source(config))


def test_all_rare_classes_are_named_with_what_was_dropped(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 3, "z": 1, "w": 3})
    cut(data / "y" / "y1" / "frame02.jpg")
    shutil.copytree(data / "w" / "w0", data / "w" / "w3")
    shutil.rmtree(data / "w" / "w1")
    with pytest.raises(Refused) as raised:
        run(data)
    message = str(raised.value)
    assert message.startswith("on_rare_class: 3 class(es)")
    assert "'y' has clips of 2 source(s) (3 before 1 dropped: y/y1: frame02.jpg is trunc" in message
    assert "class 'z' has clips of 1 source(s). Needed: 3 sources of each" in message
    assert "'w' has clips of 2 source(s) (3, but some show the same" in message
    assert "gt_csv" not in message
    assert "group_by" not in message  # each clip is its own source already
    report = json.loads(json.dumps(raised.value.report))
    assert report["rare_classes"].keys() == {"w", "y", "z"}
    assert report["rare_classes"]["y"]["sources_before"] == 3
    assert [row["video"] for row in report["dropped"]] == ["y/y1"]
    assert report["split_fractions"] is None


def test_group_by_none_is_advised_where_it_helps(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 3, "y": 2})
    rows = [(f"x/x{n}", "one", "x") for n in range(3)] + [
        (f"y/y{n}", f"{n}", "y") for n in range(2)
    ]
    gt = tmp_path / "gt.csv"
    table = pd.DataFrame(rows, columns=["folder_name", "youtube_id", "label"])
    table[:3].to_csv(gt, index=False)
    with pytest.raises(Refused, match="or group_by=none to split single clips"):
        run(data, gt_csv=str(gt))
    table.to_csv(gt, index=False)
    with pytest.raises(Refused) as raised:
        run(data, gt_csv=str(gt))
    assert "group_by" not in str(raised.value)
    with pytest.raises(Refused, match="class 'y' has clips of 2") as raised:
        run(data, gt_csv=str(gt), group_by="none")
    assert "group_by" not in str(raised.value)


def test_many_rare_classes_are_cut_in_the_message_and_whole_in_the_report(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {f"c{number:02d}": 1 for number in range(23)})
    with pytest.raises(Refused, match=r"23 class.*'c19' has.*.* and 3 more") as raised:
        run(data)
    assert "c20" not in str(raised.value)
    assert len(raised.value.report["rare_classes"]) == 23


def test_a_class_that_has_lost_all_of_its_clips_is_named(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 3, "y": 3, "z": 2})
    for frame in (data / "z").rglob("*.jpg"):
        frame.write_bytes(b"")
    notes = run(data).report["notes"]
    assert "1 class(es) have no clip left, since all were dropped: 'z'" in notes


def test_dropped_clips_count_for_their_class_in_any_spelling(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"abseiling": 3, "air_Drumming": 3})
    cut(data / "air_Drumming" / "air_Drumming1" / "frame02.jpg")
    with pytest.raises(
        Refused, match=r"'air drumming' has clips of 2 source.s. .3 before 1 dropped"
    ):
        run(data)


def test_only_clips_that_may_be_held_out_count_where_splits_are_official(tmp_path: Path) -> None:
    for split, counts in (("train", {"x": 2, "y": 1}), ("test", {"x": 1, "y": 3})):
        for label, count in counts.items():
            for number in range(count):
                name = f"{split}/{label}/{number}"
                write_clip(tmp_path / "in" / name, seed=sum(map(ord, name)) + 100 * number)
    with pytest.raises(Refused, match=r"^on_rare_class: 1 class.* class 'y' has clips of 1 source"):
        run(tmp_path / "in")  # val is taken from train


def test_rare_classes_can_be_left_out(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 2, "z": 3})
    prepared = run(data, on_rare_class="drop")
    assert sorted(prepared.annotations.categories) == ["x", "z"]
    assert {row["video"]: row["reason"] for row in prepared.report["dropped"]} == dict.fromkeys(
        ("y/y0", "y/y1"), "its class has 2 source(s), too few for 3 splits"
    )
    assert any(
        "on_rare_class=drop: 1 class(es) are left out" in n for n in prepared.report["notes"]
    )
    with pytest.raises(Refused, match="No other class is left"):
        run(class_folders(tmp_path / "few", {"x": 2, "y": 1}), on_rare_class="drop")


def test_rare_classes_can_be_kept_in_train_only(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 2, "z": 3})
    prepared = run(data, on_rare_class="train")
    table = prepared.table
    assert set(table.loc[table["label"] == "y", "split"]) == {"train"}
    assert set(table.loc[table["label"] != "y", "split"]) == {"train", "val", "test"}
    assert sorted(prepared.annotations.categories) == ["x", "y", "z"]
    assert prepared.report["train_only_classes"] == ["y"]
    assert "classes in train only, not in the test: 'y'" in describe(prepared)
    with pytest.raises(Refused, match="No other class is left"):
        run(class_folders(tmp_path / "few", {"x": 2, "y": 1}), on_rare_class="train")


@pytest.mark.parametrize("seed", range(20))
def test_sources_that_rare_classes_share_stay_whole_in_train(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        {"group": rng.integers(0, 25, 60).astype(str), "label": rng.choice(list("aabbbccd"), 60)}
    )
    table.loc[len(table)] = {"group": table["group"][0], "label": "rare"}
    train_only = unsplittable_classes(table, 3)
    assert "rare" in train_only
    if train_only != set(table["label"]):
        table["split"] = assign_splits(table.assign(split=""), 0.1, 0.1, seed, train_only)
        assert sources_in_several_splits(table) == []
        only = table["label"].isin(train_only)
        assert set(table.loc[only, "split"]) == {"train"}
        per_class = table[~only].groupby("label")["split"].nunique()
        assert (per_class == 3).all()


def test_the_same_frames_under_two_labels_are_dropped_and_named(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 5, "y": 4})
    shutil.copytree(data / "x" / "x0", data / "y" / "copy_of_x0")
    shutil.copytree(data / "x" / "x1", data / "x" / "again")
    prepared = run(data)
    assert {row["video"]: row["reason"] for row in prepared.report["dropped"]} == {
        "x/x0": "the same frames as y/copy_of_x0, which has the label 'y'",
        "y/copy_of_x0": "the same frames as x/x0, which has the label 'x'",
    }
    assert prepared.report["identical_clips"] == [["x/again", "x/x1"]]
    assert any(note.startswith("2 clips have the same frames") for note in prepared.report["notes"])
    with pytest.raises(Refused, match="on_bad_clip: 2 clips are bad: x/x0: the same frames"):
        run(data, on_bad_clip="fail")


def test_many_bad_clips_are_cut_in_the_message_and_whole_in_the_report(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 24})
    for clip in (data / "x").iterdir():
        cut(clip / "frame02.jpg")
    with pytest.raises(Refused, match=r"24 clips are bad: .* and 4 more, see") as raised:
        run(data, on_bad_clip="fail")
    assert str(raised.value).count("is truncated") == 20
    assert len(raised.value.report["dropped"]) == 24


def test_unknown_sources_claim_no_leak(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 4})
    prepared = run(data)
    assert prepared.report["random_split_would_leak"] is None
    assert prepared.report["sources_in_several_splits"] is None
    text = describe(prepared)
    assert "0%" not in text.split("dropped;")[1].split("\n", 1)[1]
    assert "sources unknown: clips cut" in text
    for label, count in (("x", 4), ("y", 4)):
        for number in range(count):
            folder = data / label / f"{label}{number}"
            folder.rename(folder.with_name(f"v_{label.upper()}_g{number + 1:02d}_c01"))
    prepared = run(data)
    assert prepared.report["sources_in_several_splits"] == 0
    assert "8 clips of 8 sources" in describe(prepared)


def test_pictures_that_are_no_frames_are_counted_and_named(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 4})
    frame = (data / "x" / "x0" / "frame00.jpg").read_bytes()
    for number in range(3):
        (data / "x" / "x0" / f"flow_x_{number}.jpg").write_bytes(frame)
    (data / "y" / "y1" / "thumbnail.jpg").write_bytes(frame)
    (data / "y" / "y2" / "other1.jpg").write_bytes(frame)
    prepared = run(data)
    assert prepared.report["pictures_left_out"] == {
        "x/x0": {"optical flow": 3},
        "y/y1": {"thumbnail": 1},
    }
    notes = "\n".join(prepared.report["notes"])
    assert "(optical flow) are left out: 3 of 1 clip(s), first x/x0" in notes
    assert "1 clip(s) have names of several patterns" in notes
    assert "first y/y2 (" in notes


def test_official_splits_that_divide_classes_and_sources_are_noted(tmp_path: Path) -> None:
    data = class_folders(tmp_path / "in", {"x": 4, "y": 3, "z": 1})
    rows = [(f"x/x{n}", f"s{n // 2}", "x", ["train", "test", "train", "val"][n]) for n in range(4)]
    rows += [(f"y/y{n}", f"t{n}", "y", ["train", "val", "train"][n]) for n in range(3)]
    rows += [("z/z0", "u", "z", "test")]
    gt = tmp_path / "gt.csv"
    columns = ["folder_name", "youtube_id", "label", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(gt, index=False)
    prepared = run(data, gt_csv=str(gt))
    notes = "\n".join(prepared.report["notes"])
    assert "1 class(es) are in test, not in train: 'z'" in notes
    assert "1 class(es) are in train, not in test: 'y'" in notes
    assert "the official splits divide 2 source(s)" in notes
    assert "'s0', 's1'" in notes
