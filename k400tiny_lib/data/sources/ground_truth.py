"""The rows of a ground truth: what is mended, what is dropped, and why."""

import posixpath
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from k400tiny_lib.data.sources.labels import unify_spelling

LEAVES = "its name leaves data_path"


@dataclass(frozen=True)
class Dropped:
    """A row of the ground truth that did not become a clip, and why."""

    video: str
    reason: str


@dataclass
class Cleaned:
    """Rows that name one clip each, and what happened on the way.

    Attributes:
        table: the rows, sorted by folder_name, which is unique.
        dropped: rows without a clip.
        repaired: label as found -> label as used.
        duplicates: clips that had several equal rows.
    """

    table: pd.DataFrame
    dropped: list[Dropped] = field(default_factory=list)
    repaired: dict[str, str] = field(default_factory=dict)
    duplicates: list[str] = field(default_factory=list)


def clean_rows(table: pd.DataFrame) -> Cleaned:
    """Mend labels, drop rows that cannot be used, keep one row per clip.

    Args:
        table: text columns folder_name and label and others, as read.
    """
    names = table["folder_name"].map(_plain_name)
    table = table.assign(folder_name=names)
    reasons = pd.Series("", index=table.index)
    reasons[names.map(_leaves)] = LEAVES
    reasons[table["label"].str.strip() == ""] = "it has no label"
    reasons[names == ""] = "a row without a name"
    dropped = _dropped(table, reasons)
    table = table[reasons == ""]

    labels, repaired = unify_spelling(table["label"])
    table = table.assign(label=labels).sort_values("folder_name", kind="stable")
    equal = table.duplicated(["folder_name", "label"])
    duplicates = sorted(set(table.loc[equal, "folder_name"]))
    table = table[~equal]
    contradicted = table.duplicated("folder_name", keep=False)
    for name, rows in table[contradicted].groupby("folder_name"):
        labels_of_clip = ", ".join(sorted(rows["label"]))
        dropped.append(Dropped(str(name), f"rows with contradicting labels: {labels_of_clip}"))
    return Cleaned(table[~contradicted].reset_index(drop=True), dropped, repaired, duplicates)


def drop_rows(table: pd.DataFrame, reasons: Any) -> tuple[pd.DataFrame, list[Dropped]]:
    """Separate the rows that have a reason (a text per row, empty for none) from the others."""
    reasons = pd.Series(reasons, index=table.index, dtype=object)
    return table[reasons == ""].reset_index(drop=True), _dropped(table, reasons)


def _dropped(table: pd.DataFrame, reasons: "pd.Series[str]") -> list[Dropped]:
    bad = table.loc[reasons != "", "folder_name"]
    return [Dropped(str(name), str(reasons[index])) for index, name in bad.items()]


def _plain_name(name: str) -> str:
    """A relative path without `.`, doubled or closing slashes; spaces around it are gone."""
    name = name.strip()
    return posixpath.normpath(name) if name else ""


def _leaves(name: str) -> bool:
    return name.startswith("/") or name in (".", "..") or name.startswith("../") or "\0" in name
