"""The ground truth of a source: its rows as read, and the clips that they become."""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.sources.labels import clean_label, label_key, label_notes, unify_spelling
from k400tiny_lib.data.tables.names import ESCAPES_DATA_PATH, leaves
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import file_digest, local_path

COLUMNS = ("folder_name", "youtube_id", "label", "group", "split")
SPLIT_BY_WORD = (
    dict.fromkeys(("train", "training"), "train")
    | dict.fromkeys(("val", "valid", "validate", "validation"), "val")
    | dict.fromkeys(("test", "testing"), "test")
)
# How the names of well-known data sets begin with the source of a clip. HMDB51 has the class
# behind it, which `_source_of` removes.
_SOURCE_IN_NAME = {
    "<youtube_id>_<start>_<end> of Kinetics": re.compile(r"(.+)_\d{6}_\d{6}"),
    "<class>_g<group>_c<clip> of UCF101": re.compile(r"(.+_g\d+)_c\d+", re.IGNORECASE),
    "<source>_<class>_<body>_<camera>_np<n>_<view>_<quality>_<n> of HMDB51": re.compile(
        r"(.+)_[fhlu]_(?:cm|nm)_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+", re.IGNORECASE
    ),
}


@dataclass(frozen=True)
class Dropped:
    """A row of the ground truth that did not become a clip, and why.

    Attributes:
        video: its name.
        reason: why it was left out.
        labels: its labels, several where rows contradict one another; as read if that is early.
        source: the video that it was cut from; "" if that is not known.
    """

    video: str
    reason: str
    labels: tuple[str, ...] = ()
    source: str = ""


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
        sources_known: whether the groups are sources. Else each clip is its own group, and nothing
            is known about clips that were cut from one video.
        left_out: what is below data_path and did not become a clip: relative path -> reason.
    """

    table: pd.DataFrame
    dropped: list[Dropped] = field(default_factory=list)
    repaired: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources_known: bool = True
    left_out: Mapping[str, str] = field(default_factory=dict)

    def drop(self, reasons: Iterable[str]) -> "GroundTruth":
        """Without the rows that have a reason to be dropped (one per row, "" for none)."""
        table, dropped = drop_rows(self.table, reasons)
        return replace(self, table=table, dropped=[*self.dropped, *dropped])

    def note(self, *notes: str) -> "GroundTruth":
        """With more notes."""
        return replace(self, notes=[*self.notes, *notes])


def digest_csv(gt_csv: str) -> str:
    """Digest of a table that `read_table` has read; empty where folder names are the labels."""
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
    table, notes, known = _add_groups(truth.table, config.group_by)
    if config.use_official_splits and "split" in table.columns:
        table["split"] = _official_splits(table["split"], config.gt_csv)
    else:
        table["split"] = ""
    columns = [name for name in (*COLUMNS, "file") if name in table.columns]
    table, notes = table[columns], [*truth.notes, *notes]
    dropped = [*dropped, *truth.dropped]
    return replace(truth, table=table, dropped=dropped, notes=notes, sources_known=known)


def clean_rows(table: pd.DataFrame) -> GroundTruth:
    """Repair labels, drop rows that cannot be used, keep one row per clip."""
    names = table["folder_name"].map(_normalize_name)
    unlabeled = table["label"].map(clean_label) == ""
    conditions = [names == "", unlabeled, names.map(leaves).astype(bool)]
    reasons = ["a row without a name", "it has no label", ESCAPES_DATA_PATH]
    chosen = np.select(conditions, reasons, default="")
    table, dropped = drop_rows(table.assign(folder_name=names), chosen)

    labels, repaired = unify_spelling(table["label"])
    notes = label_notes(table["label"], labels)
    table = table.assign(label=labels).sort_values("folder_name", kind="stable")
    repeated = table.duplicated(["folder_name", "label"])
    duplicates = sorted(set(table.loc[repeated, "folder_name"]))
    table = table[~repeated]
    contradicted = table.duplicated("folder_name", keep=False)
    for name, rows in table[contradicted].groupby("folder_name"):
        labels_of_clip = tuple(sorted(rows["label"]))
        reason = f"rows with contradicting labels: {', '.join(labels_of_clip)}"
        source = rows["youtube_id"].iloc[0] if "youtube_id" in rows.columns else ""
        dropped.append(Dropped(str(name), reason, labels_of_clip, source))
    table = table[~contradicted].reset_index(drop=True)
    return GroundTruth(table, dropped, repaired, duplicates, notes)


def drop_rows(table: pd.DataFrame, reasons: Iterable[str]) -> tuple[pd.DataFrame, list[Dropped]]:
    """Separate the rows that have a reason to be dropped (one per row, "" for none)."""
    reasons = [str(reason) for reason in reasons]
    sources = table.get("group", table.get("youtube_id", [""] * len(table)))
    rows = zip(table["folder_name"], reasons, table["label"], sources, strict=True)
    dropped = [
        Dropped(str(name), why, (label,), source) for name, why, label, source in rows if why
    ]
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
    """A relative path without `.` and doubled or trailing slashes."""
    return posixpath.normpath(name) if name.strip() else ""


def _add_groups(table: pd.DataFrame, group_by: str) -> tuple[pd.DataFrame, list[str], bool]:
    """Add the column group, and youtube_id where there is none.

    Returns:
        The table, notes about both, and whether the groups are sources.
    """
    names = table["folder_name"]
    notes: list[str] = []
    has_ids = "youtube_id" in table.columns
    if not has_ids:
        table, notes = _sources_from_names(table)
        has_ids = bool((table["youtube_id"] != names).any())
    if group_by == NONE:
        return table.assign(group=names), [], False
    if group_by not in table.columns:
        raise UserError(
            f"group_by: no column {group_by!r} (found: {', '.join(table.columns)}). "
            "Needed: a column of gt_csv, or none."
        )
    if group_by != "youtube_id":
        notes = []
    group = table[group_by].str.strip()
    if (empty := int((group == "").sum())) > 0:
        notes.append(f"{empty} clips have no {group_by}: each counts as its own source.")
    known = empty < len(table) and (group_by != "youtube_id" or has_ids)
    return table.assign(group=group.where(group != "", names)), notes, known


def _sources_from_names(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Add the column youtube_id from names that contain the source; notes say which do."""
    names, labels = table["folder_name"], table["label"]
    pairs = [_source_of(name, label) for name, label in zip(names, labels, strict=True)]
    ids = [source or name for (source, _), name in zip(pairs, names, strict=True)]
    patterns = pd.Series([pattern for _, pattern in pairs], dtype=object)
    counts = patterns[patterns != ""].value_counts()
    notes = [
        f"no column youtube_id: {count} of {len(table)} clips have their source in the name, "
        f"{pattern}"
        for pattern, count in counts.items()
    ]
    if others := len(table) - int(counts.sum()):
        # Where all are unknown, the summary of prepare_data says what follows.
        leak = ". Clips cut from one video may be in two splits." if others < len(table) else ""
        notes.append(
            f"no column youtube_id: each of {others} files or folders is its own source, since "
            f"their names do not tell{leak}"
        )
    return table.assign(youtube_id=pd.Series(ids, table.index, dtype=object)), notes


def _source_of(name: str, label: str) -> tuple[str, str]:
    """The source that a clip's name contains and the pattern of the name; both "" if none fits."""
    leaf = re.sub(r"\.\w{2,4}$", "", name.rpartition("/")[2])  # twins keep their suffix
    for pattern, expression in _SOURCE_IN_NAME.items():
        if match := expression.fullmatch(leaf):
            return _without_class(match[1], label) if "HMDB51" in pattern else match[1], pattern
    return "", ""


def _without_class(name: str, label: str) -> str:
    """`<source>_<class>` without the class; the whole name if it ends with another word."""
    key, ending = label_key(label).replace(" ", "_"), f"_{name.casefold()}"
    return name[: -len(key) - 1] if ending.endswith(f"_{key}") and len(name) > len(key) else name


def _official_splits(words: "pd.Series[str]", gt_csv: str) -> "pd.Series[str]":
    splits = words.str.strip().str.lower().map(SPLIT_BY_WORD)
    if splits.isna().any():
        raise UserError(
            f"gt_csv: split {words[splits.isna()].iloc[0]!r} in {Path(gt_csv).name} is unknown. "
            "Needed: train, val or test in every row, or use_official_splits=False."
        )
    return splits
