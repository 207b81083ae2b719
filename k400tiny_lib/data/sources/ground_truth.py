"""The ground truth of a source: its rows as read, and the clips that they become."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.sources.labels import unify_spelling
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import fetch, file_digest, local_path

ESCAPES_DATA_PATH = "its name leaves data_path"
COLUMNS = ("folder_name", "youtube_id", "label", "group", "split")
SPLIT_BY_WORD = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("val", "valid", "validate", "validation"), "val")
    | dict.fromkeys(("test", "testing"), "test")
)
_KINETICS_NAME = re.compile(r"(.+)_\d{6}_\d{6}")


@dataclass(frozen=True)
class Dropped:
    """A row of the ground truth that did not become a clip, and why."""

    video: str
    reason: str


@dataclass(frozen=True)
class GroundTruth:
    """The clips that a source names, and what happened to other rows.

    Attributes:
        table: one row per clip, sorted by folder_name (unique): `COLUMNS`, and file for videos.
            split is empty where the source has no official splits.
        dropped: rows that are not in the table.
        repaired: labels whose spelling was changed: as read -> as used.
        duplicates: clips that had several equal rows.
        notes: remarks for the user, one line each.
        left_out: what is below data_path and did not become a clip: relative path -> reason.
    """

    table: pd.DataFrame
    dropped: list[Dropped] = field(default_factory=list)
    repaired: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: Mapping[str, str] = field(default_factory=dict)


def read_csv(gt_csv: str, needed: str = "a CSV with one row per clip") -> pd.DataFrame:
    """Read a CSV, local or remote, as text columns; `needed` says what it should be.

    Raises:
        UserError: if it is missing, no CSV or without rows.
    """
    csv = fetch(gt_csv, "gt_csv")
    if not csv.is_file():
        raise UserError(f"gt_csv: {csv} does not exist. Needed: {needed}.")
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"gt_csv: {csv} cannot be read: {str(error).strip()}") from None
    table.columns = table.columns.str.strip()
    if table.empty:
        raise UserError(f"gt_csv: {csv} has no rows. Needed: one row per clip.")
    return table


def digest_csv(gt_csv: str) -> str:
    """Digest of a CSV that `read_csv` has read; empty where folder names are the labels."""
    return "" if gt_csv == NONE else file_digest(local_path(gt_csv))


def make_ground_truth(
    table: pd.DataFrame, config: Config, dropped: Iterable[Dropped] = ()
) -> GroundTruth:
    """Clean rows, group them by source video and read their official splits.

    Args:
        table: text columns folder_name and label; youtube_id, split and others are optional.
        config: group_by and use_official_splits.
        dropped: rows that were left out before.

    Raises:
        UserError: if there is no column for group_by, or a split is unknown.
    """
    truth = clean_rows(table)
    table, notes = _add_groups(truth.table, config.group_by)
    if config.use_official_splits and "split" in table.columns:
        table["split"] = _official_splits(table["split"], config.gt_csv)
    else:
        table["split"] = ""
    columns = [name for name in (*COLUMNS, "file") if name in table.columns]
    return replace(truth, table=table[columns], dropped=[*dropped, *truth.dropped], notes=notes)


def clean_rows(table: pd.DataFrame) -> GroundTruth:
    """Repair labels, drop rows that cannot be used, keep one row per clip."""
    names = table["folder_name"].map(_normalize_name)
    conditions = [names == "", table["label"].str.strip() == "", names.map(_escapes).astype(bool)]
    reasons = ["a row without a name", "it has no label", ESCAPES_DATA_PATH]
    chosen = np.select(conditions, reasons, default="")
    table, dropped = drop_rows(table.assign(folder_name=names), chosen)

    labels, repaired = unify_spelling(table["label"])
    table = table.assign(label=labels).sort_values("folder_name", kind="stable")
    repeated = table.duplicated(["folder_name", "label"])
    duplicates = sorted(set(table.loc[repeated, "folder_name"]))
    table = table[~repeated]
    contradicted = table.duplicated("folder_name", keep=False)
    for name, rows in table[contradicted].groupby("folder_name"):
        labels_of_clip = ", ".join(sorted(rows["label"]))
        dropped.append(Dropped(str(name), f"rows with contradicting labels: {labels_of_clip}"))
    table = table[~contradicted].reset_index(drop=True)
    return GroundTruth(table, dropped, repaired, duplicates)


def drop_rows(table: pd.DataFrame, reasons: Iterable[str]) -> tuple[pd.DataFrame, list[Dropped]]:
    """Separate the rows that have a reason to be dropped (one per row, "" for none)."""
    reasons = [str(reason) for reason in reasons]
    named = zip(table["folder_name"], reasons, strict=True)
    dropped = [Dropped(str(name), reason) for name, reason in named if reason]
    keep = np.array([not reason for reason in reasons], dtype=bool)  # a mask even for no rows
    return table[keep].reset_index(drop=True), dropped


def refuse_if_most_are_missing(
    kind: str, missing: list[str], total: int, directory: str | Path
) -> None:
    """Raise a UserError if most are missing: data_path and gt_csv do not belong together."""
    if 2 * len(missing) > total:
        raise UserError(
            f"gt_csv: {len(missing)} of {total} {kind} do not exist in {directory}, first "
            f"{missing[0]!r}. Needed: names as they are below data_path."
        )


def _normalize_name(name: str) -> str:
    """A relative path without `.`, doubled or trailing slashes and spaces around it."""
    name = name.strip()
    return posixpath.normpath(name) if name else ""


def _escapes(name: str) -> bool:
    return name.startswith("/") or name in (".", "..") or name.startswith("../") or "\0" in name


def _add_groups(table: pd.DataFrame, group_by: str) -> tuple[pd.DataFrame, list[str]]:
    """Add the column group, and youtube_id where there is none; returns notes about both."""
    names = table["folder_name"]
    notes = []
    if "youtube_id" not in table.columns:
        # File names of Kinetics contain the id of the source video.
        leaf = names.str.split("/").str[-1]
        ids = leaf.str.replace(_KINETICS_NAME, r"\1", regex=True)
        table = table.assign(youtube_id=ids.where(leaf.str.fullmatch(_KINETICS_NAME), names))
        if group_by == "youtube_id":
            notes.append(
                "no column youtube_id: each file or folder is its own source, unless its name is "
                "<youtube_id>_<start>_<end>. Clips cut from one video may be in two splits."
            )
    if group_by == NONE:
        return table.assign(group=names), notes
    if group_by not in table.columns:
        raise UserError(
            f"group_by: no column {group_by!r} (found: {', '.join(table.columns)}). "
            "Needed: a column of gt_csv, or none."
        )
    group = table[group_by].str.strip()
    if (empty := int((group == "").sum())) > 0:
        notes.append(f"{empty} clips have no {group_by}: each counts as its own source.")
    return table.assign(group=group.where(group != "", names)), notes


def _official_splits(words: "pd.Series[str]", gt_csv: str) -> "pd.Series[str]":
    splits = words.str.strip().str.lower().map(SPLIT_BY_WORD)
    if splits.isna().any():
        raise UserError(
            f"gt_csv: split {words[splits.isna()].iloc[0]!r} in {Path(gt_csv).name} is unknown. "
            "Needed: train, val or test in every row, or use_official_splits=False."
        )
    return splits
