"""Where clips come from: frame folders or videos, named by a CSV or by the folders they lie in."""

import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from k400tiny_lib.config import NONE
from k400tiny_lib.data.sources.class_folders import class_folder_rows
from k400tiny_lib.data.sources.ground_truth import LEAVES, Cleaned, Dropped, clean_rows, drop_rows
from k400tiny_lib.data.sources.video_files import VideoFile, list_videos
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import fetch, is_remote
from k400tiny_lib.media.frames import FRAME_SUFFIXES, frame_files, natural_key
from k400tiny_lib.media.video import VIDEO_SUFFIXES

__all__ = ["FRAME_SUFFIXES", "SAMPLE", "Source", "frame_files", "natural_key", "read_source"]

SAMPLE = "sample"
FRAME_COLUMNS = ("folder_name", "youtube_id", "label")
FILE_COLUMNS = ("file", "label")
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end")
_LAYOUTS = (
    "folder_name,youtube_id,label (frame folders), file,label[,youtube_id] (videos) or "
    "label,youtube_id,time_start,time_end,split (Kinetics)"
)
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
}
_KINETICS_NAME = re.compile(r"(.+)_\d{6}_\d{6}")


@dataclass(frozen=True)
class Source:
    """The clips that a source names, before anybody has looked at a pixel.

    Attributes:
        table: one row per clip, sorted by folder_name (unique): folder_name, youtube_id, label,
            group and split, which is empty where the source has no official splits.
        videos: the video of each clip; None where the clips are frame folders.
        rows: what became of rows that are not in the table.
        notes: what a person should know, one line each.
    """

    table: pd.DataFrame
    videos: dict[str, VideoFile] | None
    rows: Cleaned
    notes: list[str] = field(default_factory=list)


def holds_videos(data_path: str, gt_csv: str) -> bool:
    """Whether a source is made of videos, which have to be decoded, and not of frame folders.

    Raises:
        UserError: if it is neither.
    """
    if gt_csv == NONE:
        return class_folder_rows(data_path)[1]
    return _layout(_read_csv(gt_csv, nrows=0), gt_csv) != FRAME_COLUMNS


def read_source(
    data_path: str, gt_csv: str, group_by: str, use_official_splits: bool = True
) -> Source:
    """Read what a source names: from its CSV, or from its folders where `gt_csv` is none.

    Raises:
        UserError: if the directory or the CSV is missing or does not have one of the layouts, or
            if most of what it names is not there.
    """
    layout: tuple[str, ...] = ()
    notes: list[str] = []
    if gt_csv == NONE:
        table, is_video = class_folder_rows(data_path)
    else:
        table = _read_csv(gt_csv)
        layout = _layout(table, gt_csv)
        is_video = layout != FRAME_COLUMNS
    videos: dict[str, VideoFile] | None = None
    lost: list[Dropped] = []
    if is_video:
        listed = list_videos(data_path)
        if layout == KINETICS_COLUMNS:
            table, lost = _kinetics_files(table, listed)
        table, missing = _name_videos(table, listed)
        _refuse_if_missing(data_path, len(table) + len(missing + lost), missing, lost)
        lost += missing
    elif not is_remote(data_path) and not Path(data_path).is_dir():
        raise UserError(f"data_path: {data_path} is not a directory. Needed: one folder per clip.")
    rows = clean_rows(table)
    rows.dropped[:0] = lost
    if is_video:
        videos = {row.folder_name: listed[row.file] for row in rows.table.itertuples()}
    table = _group(rows.table, group_by, notes)
    official = use_official_splits and "split" in table.columns
    table["split"] = _official_splits(table["split"], gt_csv) if official else ""
    columns = ["folder_name", "youtube_id", "label", "group", "split"]
    return Source(table[columns], videos, rows, notes)


def _read_csv(gt_csv: str, nrows: int | None = None) -> pd.DataFrame:
    csv = fetch(gt_csv, "gt_csv")
    if not csv.is_file():
        raise UserError(f"gt_csv: {csv} does not exist. Needed: a CSV {_LAYOUTS}.")
    try:
        table = pd.read_csv(
            csv, dtype=str, keep_default_na=False, encoding="utf-8-sig", nrows=nrows
        )
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"gt_csv: {csv} cannot be read: {str(error).strip()}") from None
    table.columns = table.columns.str.strip()
    if table.empty and nrows is None:
        raise UserError(f"gt_csv: {csv} has no rows. Needed: one row per clip.")
    return table


def _layout(table: pd.DataFrame, gt_csv: str) -> tuple[str, ...]:
    found = set(table.columns)
    for layout in (FRAME_COLUMNS, FILE_COLUMNS, KINETICS_COLUMNS):
        if found >= set(layout):
            return layout
    # The layout that is nearest; frame folders where none is.
    near = max(
        (FRAME_COLUMNS, FILE_COLUMNS, KINETICS_COLUMNS), key=lambda names: len(found & set(names))
    )
    missing = next(name for name in near if name not in found)
    raise UserError(
        f"gt_csv: no column {missing!r} in {Path(gt_csv).name} (found: {', '.join(table.columns)})."
        f" Needed: {', '.join(near)}; the layouts are {_LAYOUTS}."
    )


def _kinetics_files(
    table: pd.DataFrame, listed: dict[str, VideoFile]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Name the file of each row of a Kinetics list, wherever below data_path it lies."""
    by_stem = {Path(name).stem: name for name in reversed(listed)}
    identifiers = table["youtube_id"].str.strip()
    start, end = (
        pd.to_numeric(table[column], errors="coerce") for column in ("time_start", "time_end")
    )
    timed = start.notna() & end.notna()
    seconds = [f"_{s:06.0f}_{e:06.0f}" for s, e in zip(start, end, strict=True)]
    stems = identifiers + pd.Series(seconds, index=table.index)
    table = table.assign(folder_name=stems, file=stems.map(by_stem))
    reasons = pd.Series("", index=table.index)
    reasons[table["file"].isna()] = "no such video (YouTube loses some)"
    reasons[~timed] = "time_start or time_end is no number"
    table.loc[~timed, "folder_name"] = identifiers
    return drop_rows(table, reasons)


def _name_videos(
    table: pd.DataFrame, listed: dict[str, VideoFile]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Name each clip after its video, without the suffix unless two videos differ in it alone."""
    named = "folder_name" in table.columns
    files = table["file"].str.strip().str.removeprefix("./")
    stems = files.map(_without_suffix)
    twice = pd.DataFrame({"stem": stems, "file": files}).drop_duplicates()["stem"]
    twice = set(twice[twice.duplicated()])
    if not named:
        table = table.assign(folder_name=files.where(stems.isin(twice), stems))
    table = table.assign(file=files)
    reasons = []
    for file in files:
        if file.startswith(("/", "../")) or "/../" in file:
            reasons.append(LEAVES)
        else:
            reasons.append("" if file in listed or not file else "no such video")
    return drop_rows(table, reasons)


def _without_suffix(file: str) -> str:
    stem, dot, suffix = file.rpartition(".")
    return stem if f"{dot}{suffix.lower()}" in VIDEO_SUFFIXES else file


def _refuse_if_missing(
    data_path: str, total: int, missing: list[Dropped], lost: list[Dropped]
) -> None:
    """Many missing files mean that data_path and gt_csv do not belong together."""
    absent = [d.video for d in missing if d.reason == "no such video"]
    # Of a Kinetics list any part may be lost, or not downloaded yet.
    if 2 * len(absent) > total or (lost and len(lost) == total):
        first = (absent or [lost[0].video])[0]
        raise UserError(
            f"gt_csv: {len(absent) or len(lost)} of {total} videos do not exist in {data_path}, "
            f"first {first!r}. Needed: files below data_path as the CSV names them."
        )


def _group(table: pd.DataFrame, group_by: str, notes: list[str]) -> pd.DataFrame:
    """Add the column group, and youtube_id where the source has none."""
    names = table["folder_name"]
    if "youtube_id" not in table.columns:
        # A name as Kinetics has them carries the id of its source.
        leaf = names.str.split("/").str[-1]
        ids = leaf.str.replace(_KINETICS_NAME, r"\1", regex=True)
        table = table.assign(youtube_id=ids.where(leaf.str.fullmatch(_KINETICS_NAME), names))
        if group_by == "youtube_id":
            notes.append(
                "no column youtube_id: each file or folder is its own source, unless its name is "
                "<youtube_id>_<start>_<end>. Clips cut from one video may stand in two splits."
            )
    if group_by == NONE:
        return table.assign(group=names)
    if group_by not in table.columns:
        raise UserError(
            f"group_by: no column {group_by!r} (found: {', '.join(table.columns)}). "
            "Needed: a column of gt_csv, or none."
        )
    group = table[group_by].str.strip()
    if (empty := int((group == "").sum())) > 0:
        notes.append(f"{empty} clips have no {group_by}: each counts as its own source.")
    return table.assign(group=group.where(group != "", names))


def _official_splits(words: "pd.Series[str]", gt_csv: str) -> "pd.Series[str]":
    splits = words.str.strip().str.lower().map(_SPLIT_WORDS)
    if splits.isna().any():
        raise UserError(
            f"gt_csv: split {words[splits.isna()].iloc[0]!r} in {Path(gt_csv).name} is unknown. "
            "Needed: train, val or test in every row, or use_official_splits=False."
        )
    return splits
