"""Segments of long videos: their times in the table, and the names of their clips."""

import math
import re
from collections.abc import Iterator
from typing import Literal

import pandas as pd

from k400tiny_lib.data.tables.names import stem
from k400tiny_lib.errors import UserError

Unit = Literal["seconds", "frames"]
SECONDS = ("time_start", "time_end")
FRAMES = ("frame_start", "frame_end")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,3}):(\d{1,2}(?:[.,]\d+)?)")
_NUMBER = re.compile(r"[+-]?\d+(?:[.,]\d*)?(?:e[+-]?\d+)?\s*(?:s|sec|seconds)?", re.IGNORECASE)
_CUT_ALREADY = re.compile(r"(.+)_(\d{6})_(\d{6})")


def unit_of(table: pd.DataFrame) -> Unit | None:
    """`seconds` or `frames`, for a table with the columns of segments; else None.

    Raises:
        UserError: if it has the start or the end only.
    """
    columns = set(table.columns)
    if set(SECONDS) <= columns:
        return "seconds"
    if set(FRAMES) <= columns:
        return "frames"
    for first, last in (SECONDS, FRAMES):
        if len(columns & {first, last}) == 1:
            has, lacks = (first, last) if first in columns else (last, first)
            raise UserError(
                f"gt_csv: it has a column {has} (by this or a similar name), but no {lacks}. "
                "Needed: both for segments, none of them for whole videos."
            )
    return None


def read_time(text: str) -> float:
    """Seconds of `75.5`, `75,5`, `1:15.5` or `0:01:15.500`; NaN for anything else."""
    text = text.strip()
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = match[1] or "0", match[2], match[3].replace(",", ".")
        if float(seconds) < 60:
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    elif _NUMBER.fullmatch(text):
        return float(text.lower().rstrip("second ").replace(",", "."))
    return math.nan


def add_times(table: pd.DataFrame, unit: Unit) -> pd.DataFrame:
    """Add the float columns `start` and `end`, and `problem`: why a row is no segment, or "".

    Args:
        table: the columns of `unit`, as text.
        unit: seconds, the end exclusive; or frames from 0, the last one included.
    """
    first, last = SECONDS if unit == "seconds" else FRAMES
    start, end = (table[name].map(read_time).astype(float) for name in (first, last))
    problems = []
    for text, begin, stop in zip(table[first] + " to " + table[last], start, end, strict=True):
        problems.append(_problem(" ".join(text.split()), begin, stop, unit))
    return table.assign(start=start, end=end, problem=problems)


def _problem(text: str, start: float, end: float, unit: Unit) -> str:
    first, last = SECONDS if unit == "seconds" else FRAMES
    if not (math.isfinite(start) and math.isfinite(end)):
        return f"{first} or {last} is no {'time' if unit == 'seconds' else 'number'}: {text!r}"
    if unit == "frames" and not (start.is_integer() and end.is_integer()):
        return f"{first} or {last} is no whole number: {text!r}"
    if start < 0 or end < 0:
        return f"it begins before the video: {text}"
    if end < start:
        return f"its end is before its start: {text}"
    # One frame has no motion.
    return f"it has no length: {text}" if end == start else ""


def clip_name(name: str, start: float, end: float, unit: Unit) -> str:
    """The name of a segment's clip: in order of time as text, whatever the other rows are."""
    if unit == "frames":
        return f"{name}_f{start:06.0f}_f{end:06.0f}"
    return f"{name}_{start:010.3f}_{end:010.3f}"


def source_of_cut_file(file: str, start: float, end: float) -> str:
    """The id of the video that a file was cut from at these times; "" for an uncut one.

    Kinetics names its files <id>_<start>_<end>.
    """
    match = _CUT_ALREADY.fullmatch(stem(file).rpartition("/")[2])
    if match and abs(int(match[2]) - start) < 1 and abs(int(match[3]) - end) < 1:
        return match[1]
    return ""


def overlapping_labels(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Pairs of clips of one file that overlap and have different labels.

    Args:
        table: file, folder_name, label, start and end; one row per clip.
    """
    for _, rows in table.sort_values(["file", "start", "end"]).groupby("file", sort=False):
        before: list[tuple[float, str, str]] = []  # those that have not ended
        for row in rows.itertuples():
            before = [other for other in before if other[0] > row.start]
            yield from ((name, row.folder_name) for _, label, name in before if label != row.label)
            before.append((row.end, row.label, row.folder_name))
