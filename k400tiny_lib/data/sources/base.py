"""What a source of clips is, and the table of the sources that `open_source` chooses from.

A source is a class with the attributes and methods of `Source`, in its own module. One line in
`SOURCES` or in `CSV_LAYOUTS` makes it known.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.parameters import SAMPLE
from k400tiny_lib.data.sources.class_folders import list_class_folders
from k400tiny_lib.data.sources.frame_folders import FrameFolders
from k400tiny_lib.data.sources.ground_truth import GroundTruth
from k400tiny_lib.data.sources.rendered import RenderedSample
from k400tiny_lib.data.sources.videos import Videos
from k400tiny_lib.data.tables.names import is_folder, plain_forms
from k400tiny_lib.data.tables.reading import Table, read_table
from k400tiny_lib.data.tables.segments import FRAMES, SECONDS
from k400tiny_lib.errors import UserError, is_utf8, printable
from k400tiny_lib.files import absolute, is_remote
from k400tiny_lib.media.container.suffixes import is_video


class Source(Protocol):
    """Clips that are, or will be, frame folders below one directory, and their labels.

    An opened source lists its directory or bucket at most once, so it describes the state at that
    time; open it again to see later changes.
    """

    config: Config  # data_path and gt_csv do not depend on the working directory
    directory: Path  # of the clip folders, after `bring`

    @property
    def ground_truth(self) -> GroundTruth:
        """One row per clip, and what became of other rows; may need `bring` first.

        Raises:
            UserError: if the labels cannot be read, or most of what they name does not exist.
        """

    def check(self) -> None:
        """Raise a UserError for a source that cannot be read, before its clips are brought."""

    def is_ready(self) -> bool:
        """Whether all clips are in `directory` already, so that `digest` can read them."""

    def bring(self) -> dict[str, str]:
        """Put the clips into `directory`: render, decode or fetch those that are missing there.

        Returns:
            The clips that cannot be brought: name -> reason.

        Raises:
            UserError: if none can.
        """

    def digest(self) -> str:
        """Content digest of all that decides which clips there are and what they show."""


class Layout(NamedTuple):
    """A kind of table: the columns that it needs, the source that reads it, an optional column."""

    name: str
    columns: tuple[str, ...]
    open: Callable[..., Source]  # with config, the rows, and the notes of reading them as `notes`
    optional: str = ""


# By the whole of data_path, or by its scheme (the part before `://`).
SOURCES: dict[str, Callable[[Config], Source]] = {SAMPLE: RenderedSample}

# By the columns of gt_csv (see `columns.known_columns`); the first layout that fits is used.
CSV_LAYOUTS = (
    Layout("frame folders", ("folder_name", "label"), FrameFolders, "youtube_id"),
    Layout("segments", ("file", "label", "time_start", "time_end"), Videos, "youtube_id"),
    Layout("segments", ("file", "label", "frame_start", "frame_end"), Videos, "youtube_id"),
    Layout("videos", ("file", "label"), Videos, "youtube_id"),
    Layout("Kinetics videos", ("label", "youtube_id", "time_start", "time_end"), Videos, "split"),
)
_LOOKED_AT = 50  # names that decide between videos and frame folders
_NO_SEGMENTS = "gt_csv: its times of segments are not used, since each frame folder is one clip"


def open_source(config: Config) -> Source:
    """Open the source that `data_path` and `gt_csv` name.

    Raises:
        UserError: if the directory or the CSV is missing or has none of the known layouts.
    """
    if named := SOURCES.get(config.data_path.partition("://")[0]):
        return named(config)
    config = config.replace(data_path=absolute(config.data_path))
    if not is_utf8(config.data_path):
        shown = printable(config.data_path)
        raise UserError(f"data_path: {shown} is not UTF-8. Needed: a directory with such a name.")
    if config.gt_csv == NONE:
        folders = list_class_folders(config.data_path)
        if folders.holds_videos:
            return Videos(config, folders.table, folders.listing)
        return FrameFolders(config, folders.table, folders.listing)
    config = config.replace(gt_csv=absolute(config.gt_csv))
    table = read_table(config.gt_csv, f"a table with one of these layouts: {_layouts()}")
    for layout in CSV_LAYOUTS:
        if set(layout.columns) <= set(table.rows.columns):
            if layout.open in (FrameFolders, Videos):
                return _open_clips(config, table, layout)
            return layout.open(config, table.rows, notes=table.notes)
    raise _unknown_layout(config.gt_csv, table)


def _open_clips(config: Config, table: Table, layout: Layout) -> Source:
    """Open frame folders or videos: what lies at the names decides, and if unclear the column."""
    rows = table.rows
    column = "folder_name" if layout.open is FrameFolders else "file"
    if column not in rows.columns:  # the list of Kinetics
        return Videos(config, rows, notes=table.notes)
    names = [name for name in rows[column].drop_duplicates()[:_LOOKED_AT] if name.strip()]
    forms = [plain_forms(name, config.data_path) for name in names]
    local = not is_remote(config.data_path)
    folders = sum(
        local and any(is_folder(config.data_path, form) for form in ways) for ways in forms
    )
    videos = sum(is_video(name) for name in names)
    of_folders = rows.assign(folder_name=rows[column])
    notes = [*table.notes, _NO_SEGMENTS] if {*SECONDS, *FRAMES} & {*rows.columns} else table.notes
    if 2 * folders > len(names) or (column == "folder_name" and 2 * videos <= len(names)):
        return FrameFolders(config, of_folders, notes=notes)
    of_videos = rows.assign(file=rows[column]).drop(columns="folder_name", errors="ignore")
    source = Videos(config, of_videos, notes=table.notes)
    if source.is_empty and not videos:
        return FrameFolders(config, of_folders, notes=notes)
    return source


def _unknown_layout(gt_csv: str, table: Table) -> UserError:
    """Name the first column that the most similar layout has and the table has not."""
    known, header = set(table.rows.columns), table.header
    nearest = max(CSV_LAYOUTS, key=lambda layout: len(known & set(layout.columns)))
    missing = repr(next(name for name in nearest.columns if name not in known))
    if not known & {"file", "folder_name", "youtube_id"}:
        missing = "'folder_name' or 'file'"
    row = table.first_line and f"; {table.first_line}"
    hint = ""
    if len(header) == 1 and (marks := re.sub(r"[\w\s.,;|/\\'\"-]", "", header[0])):
        hint = f" Separated by {marks[0]!r}?"
    elif not known & {"label", "file", "folder_name", "youtube_id"}:
        hint = " Has it no header?"
    return UserError(
        f"gt_csv: no column {missing} in {Path(gt_csv).name} (found: {', '.join(header)}{row})."
        f"{hint} Needed: one of the layouts {_layouts()}."
    )


def _layouts() -> str:
    return "; ".join(
        f"{','.join(layout.columns)}{layout.optional and f'[,{layout.optional}]'} ({layout.name})"
        for layout in CSV_LAYOUTS
    )
