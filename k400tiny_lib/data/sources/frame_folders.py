"""Frame folders: a directory or a bucket with one folder of images per clip."""

import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pandas as pd

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.preparation.content_index import open_index
from k400tiny_lib.data.preparation.validation import MISSING, digest_clips
from k400tiny_lib.data.sources.ground_truth import (
    Dropped,
    GroundTruth,
    digest_csv,
    drop_rows,
    make_ground_truth,
    refuse_if_most_are_missing,
)
from k400tiny_lib.data.tables.names import Match, Names, leaves, note_loose
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import Stamps, combine_digests, fetch, is_remote, list_files, local_path
from k400tiny_lib.media.frames import is_frame


class FrameFolders:
    """Clips that are frame folders already, named by a CSV or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        stamps: of the files of a bucket, if it has been listed already.
        notes: about the table, for the user.
    """

    def __init__(
        self,
        config: Config,
        table: pd.DataFrame,
        stamps: Stamps | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.directory = local_path(config.data_path)
        self._table = table
        self._stamps = stamps
        self._notes = list(notes)
        if not is_remote(config.data_path) and not self.directory.is_dir():
            raise UserError(
                f"data_path: {self.directory} is not a directory. Needed: one folder per clip."
            )

    @cached_property
    def ground_truth(self) -> GroundTruth:
        table, dropped, notes = self._table, list[Dropped](), list(self._notes)
        if self.config.gt_csv != NONE:
            matches = self._find(table["folder_name"])
            notes += note_loose(matches)
            named = table["folder_name"].str.strip() != ""
            file = table["folder_name"].map({name: match.file for name, match in matches.items()})
            problem = table["folder_name"].map({n: match.problem for n, match in matches.items()})
            table = table.assign(folder_name=file.where(named, ""))
            table, dropped = drop_rows(table, problem.where(named, ""))
            missing = [row.video for row in dropped if row.reason.startswith(MISSING)]
            refuse_if_most_are_missing("folders", missing, len(named), self.directory)
        truth = make_ground_truth(table, self.config, dropped)
        return replace(truth, notes=[*notes, *truth.notes])

    def _find(self, names: "pd.Series[str]") -> dict[str, Match]:
        """The folder that each name means; the directory is listed only for inexact names."""
        if is_remote(self.config.data_path):
            if self._stamps is None:
                self._stamps = list_files(self.config.data_path, "data_path")
            folders = {posixpath.dirname(name) for name in self._stamps if is_frame(name)}
        else:
            plain = {posixpath.normpath(name) for name in names if name.strip()}
            folders = {n for n in plain if not leaves(n) and (self.directory / n).is_dir()}
            if folders != plain:
                folders |= set(_list_folders(self.directory))
        return Names(self.config.data_path, folders, MISSING).find_all(names)

    def check(self) -> None:
        _ = self.ground_truth

    def is_ready(self) -> bool:
        return not is_remote(self.config.data_path)

    def bring(self) -> dict[str, str]:
        fetch(self.config.data_path, "data_path", self._stamps)
        return {}

    def digest(self) -> str:
        names = self.ground_truth.table["folder_name"]
        clips = digest_clips(self.directory, names, open_index(self.config))
        return combine_digests([clips, digest_csv(self.config.gt_csv)])


def _list_folders(root: Path) -> Iterator[str]:
    """The folders with frames below a directory; one is read up to its first frame only."""
    seen = set()
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(root / folder)
        if real in seen:  # links may lead in a circle
            continue
        seen.add(real)
        inner: list[str] = []
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if is_frame(entry.name):
                        yield folder
                        inner = []
                        break
                    if not entry.name.startswith(".") and entry.is_dir():
                        inner.append(posixpath.join(folder, entry.name))
        except OSError:  # no permission
            continue
        waiting += inner
