"""Frame folders: a directory or a bucket with one folder of images per clip."""

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
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import Stamps, combine_digests, fetch, is_remote, local_path


class FrameFolders:
    """Clips that are frame folders already, named by a CSV or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        stamps: of the files of a bucket, if it has been listed already.
    """

    def __init__(self, config: Config, table: pd.DataFrame, stamps: Stamps | None = None) -> None:
        self.config = config
        self.directory = local_path(config.data_path)
        self._table = table
        self._stamps = stamps
        if not is_remote(config.data_path) and not self.directory.is_dir():
            raise UserError(
                f"data_path: {self.directory} is not a directory. Needed: one folder per clip."
            )

    @cached_property
    def ground_truth(self) -> GroundTruth:
        return make_ground_truth(self._table, self.config)

    def check(self) -> None:
        names = self.ground_truth.table["folder_name"]
        if not is_remote(self.config.data_path):
            missing = [name for name in names if not (self.directory / name).is_dir()]
            refuse_if_most_are_missing("folders", missing, len(names), self.directory)

    def is_ready(self) -> bool:
        return not is_remote(self.config.data_path)

    def bring(self) -> dict[str, str]:
        fetch(self.config.data_path, "data_path", self._stamps)
        return {}

    def digest(self) -> str:
        names = self.ground_truth.table["folder_name"]
        clips = digest_clips(self.directory, names, open_index(self.config))
        return combine_digests([clips, digest_csv(self.config.gt_csv)])
