"""Videos: a directory or a bucket with files to decode into frame folders."""

import posixpath
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from k400tiny_lib import files
from k400tiny_lib.config import Config
from k400tiny_lib.data.preparation import decoding
from k400tiny_lib.data.preparation.content_index import ContentIndex, open_index
from k400tiny_lib.data.preparation.decoding import FrameSettings, VideoFile
from k400tiny_lib.data.preparation.validation import digest_clips
from k400tiny_lib.data.sources.ground_truth import (
    ESCAPES_DATA_PATH,
    Dropped,
    GroundTruth,
    digest_csv,
    drop_rows,
    make_ground_truth,
    refuse_if_most_are_missing,
)
from k400tiny_lib.data.sources.left_out import account_for, list_data
from k400tiny_lib.files import is_remote
from k400tiny_lib.media import own_output
from k400tiny_lib.media.listing import Listing
from k400tiny_lib.media.video import is_video

FRAMES = FrameSettings()
_MISSING = "no such video"


class Videos:
    """Videos named by a CSV, by the list of Kinetics or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        listing: of data_path, if it has been listed already.
    """

    def __init__(self, config: Config, table: pd.DataFrame, listing: Listing | None = None) -> None:
        self.config = config
        # Other videos, or other frames of them, must not mix in one directory.
        name = files.combine_digests([FRAMES.digest, config.data_path])[:8]
        self.directory = files.local_path(config.output_dir) / f"frames-{name}"
        self._table = table
        self._listing = listing or list_data(config.data_path)
        self._listed = list_videos(config.data_path, self._listing)

    @cached_property
    def ground_truth(self) -> GroundTruth:
        table, dropped = self._table, list[Dropped]()
        if "file" not in table.columns:
            table, dropped = _find_kinetics_files(table, self._listed)
            if table.empty:  # any part of a Kinetics list may be lost, or not downloaded yet
                lost = [row.video for row in dropped]
                refuse_if_most_are_missing("videos", lost, len(lost), self.config.data_path)
        total = len(table)
        named = set(table["file"].str.strip().str.removeprefix("./"))
        table, unusable = _name_clips(table, self._listed)
        missing = [row.video for row in unusable if row.reason == _MISSING]
        refuse_if_most_are_missing("videos", missing, total, self.config.data_path)
        truth = make_ground_truth(table, self.config, [*dropped, *unusable])
        return account_for(truth, self._listing, self.config, named)

    @cached_property
    def _videos(self) -> dict[str, VideoFile]:
        """The video of each clip."""
        pairs = self.ground_truth.table[["folder_name", "file"]].itertuples(index=False)
        return {clip: self._listed[file] for clip, file in pairs}

    def _job(self) -> tuple[dict[str, VideoFile], Path, FrameSettings, ContentIndex]:
        return self._videos, self.directory, FRAMES, open_index(self.config)

    def check(self) -> None:
        _ = self.ground_truth

    def is_ready(self) -> bool:
        if is_remote(self.config.data_path):
            return False
        tasks, _ = decoding.plan(*self._job())
        return not tasks

    def bring(self) -> dict[str, str]:
        config = self.config
        own_output.mark(self.directory)
        undecodable = decoding.decode_videos(
            *self._job(), scheduler=config.dask_scheduler, workers=config.decode_workers
        )
        if is_remote(config.output_dir):
            uri = f"{files.absolute(config.output_dir)}/{self.directory.name}"
            files.upload(self.directory, uri, "output_dir")
        return undecodable

    def digest(self) -> str:
        index = open_index(self.config)
        parts = [
            digest_csv(self.config.gt_csv),
            digest_clips(self.directory, self._videos, index),
            files.combine_named_digests(decoding.digest_videos(self._videos, index)),
            str(self.directory),  # later steps read the frames there
        ]
        for row in self.ground_truth.dropped:  # depends on which videos exist
            parts += [row.video, row.reason]
        return files.combine_digests(parts)


def list_videos(data_path: str, listing: Listing | None = None) -> dict[str, VideoFile]:
    """All videos below a local or remote directory by relative path, sorted.

    Args:
        data_path: the directory.
        listing: of it, if it has been listed already.

    Raises:
        UserError: if there is no such directory.
    """
    videos = (listing or list_data(data_path)).videos
    base = files.absolute(data_path)
    return {n: VideoFile(files.remote_uri(base, n), stamp) for n, stamp in videos.items()}


def _find_kinetics_files(
    table: pd.DataFrame, videos: Mapping[str, VideoFile]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Add the columns folder_name and file to a list of Kinetics: the video with that name."""
    by_stem = {Path(name).stem: name for name in reversed(list(videos))}
    start, end = (pd.to_numeric(table[c], errors="coerce") for c in ("time_start", "time_end"))
    has_times = start.notna() & end.notna()
    ids = table["youtube_id"].str.strip()
    times = [f"_{s:06.0f}_{e:06.0f}" for s, e in zip(start, end, strict=True)]
    names = ids.where(~has_times, ids + times)
    table = table.assign(folder_name=names, file=names.map(by_stem))
    conditions = [~has_times, table["file"].isna()]
    reasons = ["time_start or time_end is no number", f"{_MISSING} (YouTube loses some)"]
    return drop_rows(table, np.select(conditions, reasons, default=""))


def _name_clips(
    table: pd.DataFrame, videos: Mapping[str, VideoFile]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Name each clip after its file, without the suffix unless two files differ only in it."""
    names = table["file"].str.strip().str.removeprefix("./")
    if "folder_name" not in table.columns:
        stems = names.map(lambda name: posixpath.splitext(name)[0] if is_video(name) else name)
        files_per_stem = names.groupby(stems).transform("nunique")
        table = table.assign(folder_name=stems.where(files_per_stem == 1, names))
    escapes = names.str.match(r"/|\.\./") | names.str.contains("/../", regex=False)
    conditions = [names == "", escapes, ~names.isin(list(videos))]
    reasons = ["it names no file", ESCAPES_DATA_PATH, _MISSING]
    return drop_rows(table.assign(file=names), np.select(conditions, reasons, default=""))
