"""The data report: what was found, kept, repaired and dropped, and what the splits hold."""

from dataclasses import asdict
from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation.splits import random_split_leak, shared_sources
from k400tiny_lib.data.sources.ground_truth import GroundTruth


def data_report(config: Config, truth: GroundTruth, digest: str) -> dict[str, Any]:
    """Describe a prepared data set in values that JSON has.

    Args:
        config: val_fraction, test_fraction, seed and group_by.
        truth: its table has one row per kept clip: folder_name, label, group, content, num_frames,
            split.
        digest: content digest of the kept clips.
    """
    table = truth.table
    per_class = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    shares = per_class.div(per_class.sum(axis=1), axis=0).round(4)
    fractions = table["split"].value_counts(normalize=True).reindex(SPLITS, fill_value=0.0)
    random_split = (config.val_fraction, config.test_fraction, config.seed)
    leaked, held_out = random_split_leak(table, *random_split)
    leak = {"clips": leaked, "of": held_out, "share": round(leaked / held_out, 4)}
    return {
        "num_clips": len(table),
        "num_groups": int(table["group"].nunique()),
        "num_classes": int(table["label"].nunique()),
        "num_dropped": len(truth.dropped),
        "dropped": [asdict(row) for row in truth.dropped],
        "num_left_out": len(truth.left_out),
        "left_out": dict(truth.left_out),
        "repaired_labels": truth.repaired,
        "duplicate_rows": truth.duplicates,
        "identical_clips": _identical(table),
        "notes": truth.notes,
        "group_by": "single clips" if config.group_by == NONE else config.group_by,
        "frames_per_clip": table["num_frames"].agg(["min", "max"]).to_dict(),
        "split_fractions": fractions.round(4).to_dict(),
        "sources_in_several_splits": shared_sources(table),
        "random_split_would_leak": leak,
        "clips_per_class": per_class.to_dict("index"),
        "fractions_per_class": shares.to_dict("index"),
        "data_digest": digest,
    }


def _identical(table: pd.DataFrame) -> list[list[str]]:
    """The names of clips with the same content."""
    copies = table[table.duplicated("content", keep=False)]
    return sorted(sorted(rows["folder_name"]) for _, rows in copies.groupby("content"))
