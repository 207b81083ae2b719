"""Videos: a directory or a bucket with files to decode into frame folders."""

import os
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
from k400tiny_lib.errors import UserError
from k400tiny_lib.files import Stamps, is_remote
from k400tiny_lib.media.video import is_video

FRAMES = FrameSettings()
_MISSING = "no such video"


class Videos:
    """Videos named by a CSV, by the list of Kinetics or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the CSV or of the class folders.
        stamps: of the files below data_path, if it has been listed already.
    """

    def __init__(self, config: Config, table: pd.DataFrame, stamps: Stamps | None = None) -> None:
        self.config = config
        # Other videos, or other frames of them, must not mix in one directory.
        name = files.combine_digests([FRAMES.digest, config.data_path])[:8]
        self.directory = files.local_path(config.output_dir) / f"frames-{name}"
        self._table = table
        self._listed = list_videos(config.data_path, stamps)

    @cached_property
    def ground_truth(self) -> GroundTruth:
        table, dropped = self._table, list[Dropped]()
        if "file" not in table.columns:
            table, dropped = _find_kinetics_files(table, self._listed)
            if table.empty:  # any part of a Kinetics list may be lost, or not downloaded yet
                lost = [row.video for row in dropped]
                refuse_if_most_are_missing("videos", lost, len(lost), self.config.data_path)
        total = len(table)
        table, unusable = _name_clips(table, self._listed)
        missing = [row.video for row in unusable if row.reason == _MISSING]
        refuse_if_most_are_missing("videos", missing, total, self.config.data_path)
        return make_ground_truth(table, self.config, [*dropped, *unusable])

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


def list_videos(data_path: str, stamps: Stamps | None = None) -> dict[str, VideoFile]:
    """All videos below a local or remote directory by relative path, sorted.

    Args:
        data_path: the directory.
        stamps: of its files, if it has been listed already.

    Raises:
        UserError: if there is no such directory.
    """
    if stamps is None:
        is_local = not is_remote(data_path)
        stamps = _list_local(data_path) if is_local else files.list_files(data_path, "data_path")
    base = files.absolute(data_path)
    listed = {n: VideoFile(f"{base}/{n}", stamp) for n, stamp in sorted(stamps.items())}
    return {name: video for name, video in listed.items() if is_video(name)}


def _list_local(data_path: str) -> Stamps:
    root = files.local_path(data_path)
    if not root.is_dir():
        raise UserError(f"data_path: {root} is not a directory. Needed: one with videos.")
    paths = (Path(folder, n) for folder, _, names in os.walk(root) for n in filter(is_video, names))
    stamps = ((path.relative_to(root).as_posix(), files.file_stamp(path)) for path in paths)
    return {name: stamp for name, stamp in stamps if stamp}  # others are links to nowhere


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
