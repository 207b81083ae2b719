"""Frame folders: a directory or a bucket with one folder of images per clip."""

import os
from functools import cached_property

import pandas as pd

from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation.content_index import open_index
from k400tiny_lib.data.preparation.validation import digest_clips
from k400tiny_lib.data.sources.ground_truth import (
    GroundTruth,
    digest_csv,
    make_ground_truth,
    refuse_if_most_are_missing,
)
from k400tiny_lib.data.sources.left_out import account_for, list_data
from k400tiny_lib.files import combine_digests, fetch, is_remote, local_path
from k400tiny_lib.media.listing import Listing


class FrameFolders:
    """Clips that are frame folders already, named by a CSV or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        listing: of data_path, if it has been listed already.
    """

    def __init__(self, config: Config, table: pd.DataFrame, listing: Listing | None = None) -> None:
        self.config = config
        self.directory = local_path(config.data_path)
        self._table = table
        self._listing = listing
        if listing is None and not is_remote(config.data_path):
            self._listing = list_data(config.data_path)

    @cached_property
    def ground_truth(self) -> GroundTruth:
        truth = make_ground_truth(self._table, self.config)
        if self._listing is None:  # only `bring` lists a bucket, which may take minutes
            return truth
        named = {*truth.table["folder_name"], *(row.video for row in truth.dropped)}
        return account_for(truth, self._listing, self.config, named)

    def check(self) -> None:
        names = self.ground_truth.table["folder_name"]
        if not is_remote(self.config.data_path):
            # Path.is_dir would raise below a folder without permission.
            missing = [n for n in names if not os.path.isdir(self.directory / n)]  # noqa: PTH112
            refuse_if_most_are_missing("folders", missing, len(names), self.directory)

    def is_ready(self) -> bool:
        return not is_remote(self.config.data_path)

    def bring(self) -> dict[str, str]:
        if is_remote(self.config.data_path):
            self._listing = self._listing or list_data(self.config.data_path)
            fetch(self.config.data_path, "data_path", self._listing.stamps)
        return {}

    def digest(self) -> str:
        names = self.ground_truth.table["folder_name"]
        clips = digest_clips(self.directory, names, open_index(self.config))
        return combine_digests([clips, digest_csv(self.config.gt_csv)])
