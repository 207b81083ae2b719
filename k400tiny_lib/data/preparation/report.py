"""The data report: what was found, kept, repaired and dropped, and what the splits hold."""

from typing import Any

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.annotations import SPLITS
from k400tiny_lib.data.preparation.splits import random_split_leak, shared_sources
from k400tiny_lib.data.sources.ground_truth import Dropped, GroundTruth


def data_report(
    config: Config,
    table: pd.DataFrame,
    truth: GroundTruth,
    dropped: list[Dropped],
    notes: list[str],
    digest: str,
) -> dict[str, Any]:
    """Describe a prepared data set in values that JSON has.

    Args:
        config: val_fraction, test_fraction, seed and group_by.
        table: one row per kept clip: folder_name, label, group, content, num_frames, split.
        truth: repaired labels and duplicate rows.
        dropped: all clips that were dropped.
        notes: remarks for the user.
        digest: content digest of the kept clips.
    """
    per_class = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
    shares = per_class.div(per_class.sum(axis=1), axis=0).round(4)
    leaked, held_out = random_split_leak(
        table, config.val_fraction, config.test_fraction, config.seed
    )
    return {
        "num_clips": len(table),
        "num_groups": int(table["group"].nunique()),
        "num_classes": int(table["label"].nunique()),
        "num_dropped": len(dropped),
        "dropped": [{"video": clip.video, "reason": clip.reason} for clip in dropped],
        "repaired_labels": truth.repaired,
        "duplicate_rows": truth.duplicates,
        "identical_clips": _identical(table),
        "notes": notes,
        "group_by": "single clips" if config.group_by == NONE else config.group_by,
        "frames_per_clip": {
            "min": int(table["num_frames"].min()),
            "max": int(table["num_frames"].max()),
        },
        "split_fractions": {
            name: round(float((table["split"] == name).mean()), 4) for name in SPLITS
        },
        "sources_in_several_splits": shared_sources(table),
        "random_split_would_leak": {
            "clips": leaked,
            "of": held_out,
            "share": round(leaked / held_out, 4),
        },
        "clips_per_class": _by_label(per_class),
        "fractions_per_class": _by_label(shares),
        "data_digest": digest,
    }


def _by_label(counts: pd.DataFrame) -> dict[str, dict[str, float]]:
    return {str(label): row for label, row in counts.to_dict("index").items()}


def _identical(table: pd.DataFrame) -> list[list[str]]:
    """The names of clips with the same content."""
    copies = table[table.duplicated("content", keep=False)]
    return sorted(sorted(rows["folder_name"]) for _, rows in copies.groupby("content"))
