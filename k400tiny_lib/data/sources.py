"""Where clips come from: frame folders with a ground-truth CSV."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from k400tiny_lib.errors import UserError

COLUMNS = ("folder_name", "youtube_id", "label")
FRAME_SUFFIXES = (".jpg", ".jpeg", ".png")
SAMPLE = "sample"
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Dropped:
    """A row of the ground truth that did not become a clip, and why."""

    video: str
    reason: str


def natural_key(name: str) -> tuple[str | int, ...]:
    """Sort key that puts frame2 before frame10."""
    parts = _DIGITS.split(name)
    return tuple(int(part) if index % 2 else part for index, part in enumerate(parts))


def frame_files(folder: Path) -> list[Path]:
    """The frames of a clip in natural order of their names.

    Raises:
        OSError: if the folder cannot be listed.
    """
    found = (path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES)
    return sorted(found, key=lambda path: natural_key(path.name))


def read_ground_truth(csv: Path, group_by: str) -> pd.DataFrame:
    """Read the ground truth as text columns, one row per clip.

    Args:
        csv: the file; columns folder_name, youtube_id, label and perhaps more.
        group_by: the column that names a clip's source; `none` for no column.

    Returns:
        The rows with stripped text, and a column `group`.

    Raises:
        UserError: if the file is missing, unreadable, empty or lacks a column.
    """
    if not csv.is_file():
        raise UserError(f"gt_csv: {csv} does not exist. Needed: a CSV {','.join(COLUMNS)}.")
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise UserError(f"gt_csv: {csv} cannot be read: {str(error).strip()}") from None
    table.columns = table.columns.str.strip()
    needed = [*COLUMNS, *({group_by} - {*COLUMNS, "none"})]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise UserError(
            f"gt_csv: no column {missing[0]!r} in {csv.name} (found: {', '.join(table.columns)}). "
            f"Needed: {', '.join(needed)}."
        )
    if table.empty:
        raise UserError(f"gt_csv: {csv} has no rows. Needed: one row per clip.")
    table = table.apply(lambda column: column.str.strip())
    table["group"] = table["folder_name"] if group_by == "none" else table[group_by]
    return table


def find_clips(table: pd.DataFrame, data_path: Path) -> tuple[pd.DataFrame, list[Dropped]]:
    """Keep the rows whose folder holds frames.

    Returns:
        The rows with a column `num_frames`, in order of folder_name, and what was dropped.

    Raises:
        UserError: if most folders are missing, which means that data_path and gt_csv do not
            belong together.
    """
    if not data_path.is_dir():
        raise UserError(f"data_path: {data_path} is not a directory. Needed: one folder per clip.")
    table = table.sort_values("folder_name", kind="stable").drop_duplicates(
        ["folder_name", "label"]
    )
    dropped: list[Dropped] = []
    missing: list[str] = []
    counts: list[int] = []
    for video in table["folder_name"]:
        folder = data_path / video
        exists = bool(video) and folder.is_dir()
        counts.append(len(frame_files(folder)) if exists else 0)
        if not exists:
            missing.append(video)
            dropped.append(Dropped(video, "no such folder"))
        elif not counts[-1]:
            dropped.append(Dropped(video, "no frames (.jpg, .jpeg, .png)"))
    if 2 * len(missing) > len(table):
        raise UserError(
            f"gt_csv: {len(missing)} of {len(table)} folders do not exist in {data_path}, first "
            f"{missing[0]!r}. Needed: folder_name as it stands below data_path."
        )
    table = table.assign(num_frames=counts)
    return table[table["num_frames"] > 0].reset_index(drop=True), dropped
