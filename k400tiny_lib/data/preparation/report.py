"""The data report: what was found, kept, repaired and dropped, and what the splits hold."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import permutations
from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation.rare_classes import RareClass
from k400tiny_lib.data.preparation.splits import random_split_leak, sources_in_several_splits
from k400tiny_lib.data.sources.ground_truth import GroundTruth
from k400tiny_lib.errors import listed

_LISTED = 10  # names in a note


def data_report(
    config: Config, truth: GroundTruth, rare: Sequence[RareClass] = (), digest: str = ""
) -> dict[str, Any]:
    """Describe a data set in values that JSON has.

    Args:
        config: val_fraction, test_fraction, seed and group_by.
        truth: its table has one row per kept clip: folder_name, label, group, content, num_frames,
            left_out, split. Where that is empty, since there are no splits, what follows from them
            is null.
        rare: classes with too few sources for the splits.
        digest: content digest of the kept clips.
    """
    table = truth.table
    frames = table["num_frames"].agg(["min", "max"]).to_dict() if len(table) else None
    dropped = sorted(truth.dropped, key=lambda row: row.video)
    left_out = zip(table["folder_name"], table["left_out"], strict=True)
    return _of_splits(config, truth) | {
        "num_clips": len(table),
        "num_groups": int(table["group"].nunique()),
        "num_classes": int(table["label"].nunique()),
        "num_dropped": len(truth.dropped),
        "dropped": [{"video": row.video, "reason": row.reason} for row in dropped],
        "num_left_out": len(truth.left_out),
        "left_out": dict(truth.left_out),
        "repaired_labels": truth.repaired,
        "duplicate_rows": truth.duplicates,
        "identical_clips": _identical(table),
        "pictures_left_out": {name: counts for name, counts in left_out if counts},
        "notes": truth.notes,
        "group_by": "single clips" if config.group_by == NONE else config.group_by,
        "sources_known": truth.sources_known,
        "frames_per_clip": frames,
        "on_rare_class": config.on_rare_class,
        "rare_classes": {one.label: asdict(one) for one in rare},
        "data_digest": digest,
    }


def _of_splits(config: Config, truth: GroundTruth) -> dict[str, Any]:
    """The part of the report that needs splits; null where it cannot be known."""
    table = truth.table
    of_sources: dict[str, Any] = {
        "sources_in_several_splits": None,
        "random_split_would_leak": None,
    }
    if table.empty or not table["split"].isin(SPLITS).all():
        clips_per_class = table["label"].value_counts().sort_index().to_dict()
        unknown = ("split_fractions", "train_only_classes", "fractions_per_class")
        return {"clips_per_class": clips_per_class, **dict.fromkeys(unknown), **of_sources}
    if truth.sources_known:
        arguments = (config.val_fraction, config.test_fraction, config.seed)
        leaked, held_out = random_split_leak(table, *arguments)
        of_sources = {
            "sources_in_several_splits": len(sources_in_several_splits(table)),
            "random_split_would_leak": {
                "clips": leaked,
                "of": held_out,
                "share": round(leaked / held_out, 4),
            },
        }
    per_class = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    fractions = table["split"].value_counts(normalize=True).reindex(SPLITS, fill_value=0.0)
    shares = per_class.div(per_class.sum(axis=1), axis=0).round(4)
    return of_sources | {
        "split_fractions": fractions.round(4).to_dict(),
        "train_only_classes": sorted(per_class.index[per_class["train"] == per_class.sum(axis=1)]),
        "clips_per_class": per_class.to_dict("index"),
        "fractions_per_class": shares.to_dict("index"),
    }


def _identical(table: pd.DataFrame) -> list[list[str]]:
    """The names of clips with the same content."""
    copies = table[table.duplicated("content", keep=False)]
    return sorted(sorted(rows["folder_name"]) for _, rows in copies.groupby("content"))


def frame_notes(table: pd.DataFrame) -> list[str]:
    """Remarks about pictures that are no frames, and about frames of several patterns of names.

    Args:
        table: folder_name, left_out and patterns (of `ClipCheck`), one row per clip.
    """
    notes = []
    kinds = sorted({kind for counts in table["left_out"] for kind in counts})
    for kind in kinds:
        counts = table["left_out"].map(lambda counts, kind=kind: counts.get(kind, 0))
        clips = table.loc[counts > 0, "folder_name"]
        notes.append(
            f"pictures that are no frames ({kind}) are left out: {counts.sum()} of {len(clips)} "
            f"clip(s), first {clips.iloc[0]}"
        )
    mixed = table[table["patterns"].map(len) > 0]
    if len(mixed):
        first = mixed.iloc[0]
        patterns = [f"{count} x {pattern}" for pattern, count in first["patterns"].items()]
        notes.append(
            f"the frames of {len(mixed)} clip(s) have names of several patterns, all are used in "
            f"the order of their names: first {first['folder_name']} "
            f"({listed(patterns, _LISTED)})"
        )
    return notes


def official_split_notes(table: pd.DataFrame) -> list[str]:
    """Remarks about classes that are not in all of the official splits, and divided sources.

    Args:
        table: columns group, label and split, one row per clip.
    """
    notes = []
    classes = {name: set(table.loc[table["split"] == name, "label"]) for name in SPLITS}
    for split, other in permutations(SPLITS, 2):
        if labels := sorted(classes[other] - classes[split]):
            names = listed(list(map(repr, labels)), _LISTED)
            notes.append(f"{len(labels)} class(es) are in {other}, not in {split}: {names}")
    if shared := sources_in_several_splits(table):
        notes.append(
            f"the official splits divide {len(shared)} source(s), so the test is partly of what "
            f"training has seen: {listed(list(map(repr, shared)), _LISTED)}"
        )
    return notes
