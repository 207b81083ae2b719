"""Frame folders: a directory or a bucket with one folder of images per clip."""

import posixpath
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

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
from k400tiny_lib.data.sources.left_out import account_for, digest_left_out, explain, list_data
from k400tiny_lib.data.tables.names import Match, Names, is_folder, leaves, note_loose, plain_forms
from k400tiny_lib.files import combine_digests, is_remote, local_path
from k400tiny_lib.media.listing import Listing
from k400tiny_lib.remote_files import fetch


class FrameFolders:
    """Clips that are frame folders already, named by a CSV or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        listing: of data_path, if it has been listed already.
        notes: about the table, for the user.
    """

    def __init__(
        self,
        config: Config,
        table: pd.DataFrame,
        listing: Listing | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.config = config
        self.directory = local_path(config.data_path)
        self._table = table
        self._notes = list(notes)
        self._listing = listing
        if listing is None and not is_remote(config.data_path):
            self._listing = list_data(config.data_path)

    @cached_property
    def ground_truth(self) -> GroundTruth:
        table, dropped, notes = self._table, list[Dropped](), list(self._notes)
        if self.config.gt_csv != NONE:
            matches = self._find(table["folder_name"])
            notes += note_loose(matches)
            named = table["folder_name"].str.strip() != ""
            folder = table["folder_name"].map({name: match.file for name, match in matches.items()})
            problem = table["folder_name"].map({n: match.problem for n, match in matches.items()})
            table = table.assign(folder_name=folder.where(named, ""))
            table, dropped = drop_rows(table, problem.where(named, ""))
            missing = [row.video for row in dropped if row.reason.startswith(MISSING)]
            refuse_if_most_are_missing("folders", missing, len(named), self.directory)
        truth = make_ground_truth(table, self.config, dropped)
        truth = replace(truth, notes=[*notes, *truth.notes])
        if self._listing is None:  # only `bring` lists a bucket, which may take minutes
            return truth
        all_named = {*truth.table["folder_name"], *(row.video for row in truth.dropped)}
        return account_for(truth, self._listing, self.config, all_named)

    def _find(self, names: "pd.Series[str]") -> dict[str, Match]:
        """The folder that each name means."""
        if self._listing is None:
            forms = (
                form for name in names for form in plain_forms(name, self.config.data_path)[:1]
            )
            return Names(self.config.data_path, forms, MISSING).find_all(names)
        folders = set(self._listing.frame_folders)
        if not is_remote(self.config.data_path):
            plain = {posixpath.normpath(name) for name in names if name.strip()} - folders
            # Folders without frames are dropped for that.
            folders |= {n for n in plain if is_folder(self.config.data_path, n) and not leaves(n)}
        matches = Names(self.config.data_path, folders, MISSING).find_all(names)
        return explain(matches, self._listing)

    def check(self) -> None:
        _ = self.ground_truth

    def is_ready(self) -> bool:
        return not is_remote(self.config.data_path)

    def bring(self) -> dict[str, str]:
        if is_remote(self.config.data_path):
            if self._listing is None:
                self._listing = list_data(self.config.data_path)
                self.__dict__.pop("ground_truth", None)  # it can now be complete
            fetch(self.config.data_path, "data_path", self._listing.stamps)
        return {}

    def digest(self) -> str:
        truth = self.ground_truth
        clips = digest_clips(self.directory, truth.table["folder_name"], open_index(self.config))
        return combine_digests([clips, digest_csv(self.config.gt_csv), digest_left_out(truth)])
