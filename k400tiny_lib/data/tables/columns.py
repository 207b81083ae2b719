"""Which column of a table is what: the usual names, whatever their case, spaces and underscores."""

import re
from collections.abc import Sequence

import pandas as pd

_START, _END = "(start|begin|onset|from)", "(end|stop|finish|offset|to)"
# Units that annotation tools write into the header, as `Start (s)` or `Begin Time - ss.msec`.
_SECONDS = "(s|sec|secs|seconds|ssmsec|hhmmssms)?"
_MILLISECONDS = "(ms|msec|msecs|milliseconds)"
_NUMBER = "(s|no|number|index|idx|id)?"

# Column that the sources know -> the names that it has in files, as a pattern without case, spaces
# and punctuation. The first name that a file has is used.
_NAMES = {
    "folder_name": ("foldername", "folder", "frames?(dir|folder)", "dir(ectory)?"),
    "file": (
        "(video|clip|media)?filepath",
        "(video|clip|media)?path",
        "(video|clip|media)?filename",
        "(video|clip|media)?file",
        "(video|clip|media)name",
        "video|clip|media",
        "name",
    ),
    "label": (
        "(class|action|activity)?label(name)?",
        "(class|category|action|activity)(name)?",
        "behaviou?r",
        "labels",
        "(label|class|category|action)(id|idx|index)",
        "target",
    ),
    "youtube_id": ("youtubeid", "yt_?id"),
    "split": ("split", "subset", "partition"),
    "time_start": (f"(time|t)?{_START}(time)?{_SECONDS}",),
    "time_end": (f"(time|t)?{_END}(time)?{_SECONDS}",),
    "ms_start": (f"(time|t)?{_START}(time)?{_MILLISECONDS}",),
    "ms_end": (f"(time|t)?{_END}(time)?{_MILLISECONDS}",),
    "frame_start": (f"frame{_START}", f"({_START}|first)frame{_NUMBER}"),
    "frame_end": (f"frame{_END}", f"({_END}|last)frame{_NUMBER}"),
}
_PATTERNS = {name: [re.compile(p) for p in patterns] for name, patterns in _NAMES.items()}
# Of a file, or of its source where another column has the file; there, `id` may count the rows.
_ID, _SOURCE_ID = re.compile("(video|clip)?id"), re.compile("videoid")
_PUNCTUATION = re.compile(r"[\W_]+")
_TEMPLATE = "template"  # Something-Something: the class; its `label` is one description of it


def known_columns(columns: Sequence[str]) -> dict[str, str]:
    """The columns that the sources know -> the names of these columns in a table."""
    keys = {name: _PUNCTUATION.sub("", name.casefold()) for name in columns}
    known: dict[str, str] = {}
    for column, patterns in _PATTERNS.items():
        matching = (n for p in patterns for n, key in keys.items() if p.fullmatch(key))
        name = column if column in keys else next(matching, None)
        if name is not None:
            known[column] = name
    has_name = "file" in known or "folder_name" in known
    pattern = _SOURCE_ID if has_name else _ID
    an_id = next((name for name, key in keys.items() if pattern.fullmatch(key)), None)
    is_source = has_name or ("time_start" in known and "time_end" in known)
    if an_id is not None:
        known.setdefault("youtube_id" if is_source else "file", an_id)
    has_times = "time_start" in known or "time_end" in known
    if not has_name and not has_times and "youtube_id" in known:
        known.setdefault("file", known["youtube_id"])  # files named by their id
    if _TEMPLATE in keys.values() and "file" in known:
        known["label"] = next(name for name, key in keys.items() if key == _TEMPLATE)
    return known


def names_clips(columns: Sequence[str]) -> bool:
    """Whether these are the columns of a table that names clips and labels."""
    known = known_columns([name.strip().lstrip("#").strip() for name in columns])
    return "label" in known and bool(known.keys() & {"file", "folder_name", "youtube_id"})


def add_known_columns(table: pd.DataFrame, name: str) -> tuple[pd.DataFrame, list[str]]:
    """Add the columns that the sources know, in addition to those of the file.

    Args:
        table: text columns with the names of the file.
        name: of the file, for messages.

    Returns:
        The table with the columns of `_NAMES` that it has (times in milliseconds as seconds, what
        is no number as it is), and notes about renamed columns.
    """
    known = known_columns(list(table.columns))
    table = table.assign(**{column: table[name] for column, name in known.items()})
    notes = []
    if known.get("label", "").casefold() == _TEMPLATE:
        table["label"] = table["label"].str.replace(r"[\[\]]", "", regex=True)
        notes.append(f"gt_csv: the labels are the column {known['label']!r} of {name}")
    for end in ("start", "end"):
        if f"ms_{end}" in table.columns and f"time_{end}" not in table.columns:
            seconds = pd.to_numeric(table[f"ms_{end}"], errors="coerce") / 1000
            text = seconds.map("{:.3f}".format)
            table[f"time_{end}"] = text.where(seconds.notna(), table[f"ms_{end}"])
    return table, notes
