"""What a source of clips is, and the table of the sources that `open_source` chooses from.

A source is a class with the attributes and methods of `Source`, in its own module. One line in
`SOURCES` or in `CSV_LAYOUTS` makes it known.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.config.parameters import SAMPLE
from k400tiny_lib.data.sources.class_folders import list_class_folders
from k400tiny_lib.data.sources.frame_folders import FrameFolders
from k400tiny_lib.data.sources.ground_truth import GroundTruth, read_csv
from k400tiny_lib.data.sources.rendered import RenderedSample
from k400tiny_lib.data.sources.videos import Videos
from k400tiny_lib.errors import UserError, is_utf8, printable
from k400tiny_lib.files import absolute


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
    """A kind of CSV: the columns that it needs, the source that reads it, an optional column."""

    name: str
    columns: tuple[str, ...]
    open: Callable[[Config, pd.DataFrame], Source]
    optional: str = ""


# By the whole of data_path, or by its scheme (the part before `://`).
SOURCES: dict[str, Callable[[Config], Source]] = {SAMPLE: RenderedSample}

# By the columns of gt_csv; the first layout that fits is used.
CSV_LAYOUTS = (
    Layout("frame folders", ("folder_name", "youtube_id", "label"), FrameFolders),
    Layout("videos", ("file", "label"), Videos, "youtube_id"),
    Layout("Kinetics videos", ("label", "youtube_id", "time_start", "time_end"), Videos, "split"),
)


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
    table = read_csv(config.gt_csv, f"a CSV with one of these layouts: {_layouts()}")
    for layout in CSV_LAYOUTS:
        if set(layout.columns) <= set(table.columns):
            return layout.open(config, table)
    raise _unknown_layout(config.gt_csv, list(table.columns))


def _unknown_layout(gt_csv: str, columns: list[str]) -> UserError:
    """Name the first column that the most similar layout has and the CSV has not."""
    nearest = max(CSV_LAYOUTS, key=lambda layout: len(set(columns) & set(layout.columns)))
    missing = next(name for name in nearest.columns if name not in columns)
    return UserError(
        f"gt_csv: no column {missing!r} in {Path(gt_csv).name} (found: {', '.join(columns)}). "
        f"Needed: {', '.join(nearest.columns)}. The layouts are {_layouts()}."
    )


def _layouts() -> str:
    return "; ".join(
        f"{','.join(layout.columns)}{layout.optional and f'[,{layout.optional}]'} ({layout.name})"
        for layout in CSV_LAYOUTS
    )
