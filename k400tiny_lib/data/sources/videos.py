"""Videos: a directory or a bucket with files to decode into frame folders.

A row of the table is a whole file, a segment of a longer one, or a clip of the list of Kinetics.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from k400tiny_lib import files, remote_files
from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.preparation import decoding
from k400tiny_lib.data.preparation.content_index import ContentIndex, open_index
from k400tiny_lib.data.preparation.decoding import Decodings, VideoPart
from k400tiny_lib.data.preparation.decoding_worker import FrameSettings, VideoFile
from k400tiny_lib.data.preparation.validation import digest_clips
from k400tiny_lib.data.sources.ground_truth import (
    Dropped,
    GroundTruth,
    digest_csv,
    drop_rows,
    make_ground_truth,
    refuse_if_most_are_missing,
)
from k400tiny_lib.data.sources.left_out import account_for, digest_left_out, explain, list_data
from k400tiny_lib.data.tables import segments
from k400tiny_lib.data.tables.names import Match, Names, name_clips, note_loose, separate, stem
from k400tiny_lib.files import is_remote
from k400tiny_lib.media import own_output
from k400tiny_lib.media.listing import Listing
from k400tiny_lib.media.sampling import Segment

FRAMES = FrameSettings()
_MISSING = "no such video"


class Videos:
    """Videos named by a table, by the list of Kinetics or by class folders.

    Args:
        config: with absolute data_path and gt_csv.
        table: the rows of the table or of the class folders.
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
        # Other videos, or other frames of them, must not mix in one directory.
        name = files.combine_digests([FRAMES.digest, config.data_path])[:8]
        self.directory = files.local_path(config.output_dir) / f"frames-{name}"
        self._table = table
        self._listing = listing or list_data(config.data_path)
        self._listed = list_videos(config.data_path, self._listing)
        self._notes = list(notes)
        self._segments: dict[str, Segment | None] = {}  # of the clips of long videos
        self._damaged: dict[str, str] = {}  # clip -> note, once the videos are decoded

    @property
    def is_empty(self) -> bool:
        """Whether data_path holds no video."""
        return not self._listed

    @property
    def ground_truth(self) -> GroundTruth:
        damages = [f"{name}: {note}" for name, note in sorted(self._damaged.items())]
        return replace(self._truth, notes=[*self._truth.notes, *damages])

    @cached_property
    def _truth(self) -> GroundTruth:
        table, notes, total = self._table, list(self._notes), len(self._table)
        if "file" not in table.columns and _are_whole(table, self._listed):
            table = table.assign(file=table["youtube_id"])
        if "file" in table.columns:
            matches = Names(self.config.data_path, self._listed, _MISSING).find_all(table["file"])
            matches = explain(matches, self._listing)
            notes += note_loose(matches)
            table, dropped = _find_files(table, matches)
            named = {match.file for match in matches.values()}
            missing = [row.video for row in dropped if row.reason.startswith(_MISSING)]
            refuse_if_most_are_missing("videos", missing, total, self.config.data_path)
        else:
            table, dropped = _find_kinetics_files(table, self._listed, notes)
            named = set(table["file"])
            if table.empty:  # any part of a Kinetics list may be lost, or not downloaded yet
                lost = [row.video for row in dropped]
                refuse_if_most_are_missing("videos", lost, len(lost), self.config.data_path)
        if "folder_name" not in table.columns:
            table = table.assign(folder_name=table["file"].map(name_clips(table["file"])))
            if unit := segments.unit_of(table):
                table, unusable = _cut(table, unit)
                dropped += unusable
        truth = make_ground_truth(table, self.config, dropped)
        if "segment" in table.columns:
            self._segments = dict(zip(table["folder_name"], table["segment"], strict=True))
            truth, more = _keep_files_together(truth, table, self.config.group_by)
            notes += more
        truth = replace(truth, notes=[*notes, *truth.notes])
        return account_for(truth, self._listing, self.config, named)

    @cached_property
    def _clips(self) -> dict[str, VideoPart]:
        """What each clip shows."""
        pairs = self._truth.table[["folder_name", "file"]].itertuples(index=False)
        return {
            clip: VideoPart(self._listed[file], self._segments.get(clip)) for clip, file in pairs
        }

    def _job(self) -> tuple[dict[str, VideoPart], Path, FrameSettings, ContentIndex]:
        settings = replace(FRAMES, max_bad_frames=self.config.max_bad_frames)
        return self._clips, self.directory, settings, open_index(self.config)

    def check(self) -> None:
        _ = self.ground_truth

    def is_ready(self) -> bool:
        if is_remote(self.config.data_path):
            return False
        todo, _ = decoding.plan(*self._job())
        return not todo

    def bring(self) -> dict[str, str]:
        config = self.config
        own_output.mark(self.directory)
        decoded: Decodings = decoding.decode_videos(
            *self._job(), scheduler=config.dask_scheduler, workers=config.decode_workers
        )
        self._damaged = decoded.notes
        if is_remote(config.output_dir):
            uri = f"{files.absolute(config.output_dir)}/{self.directory.name}"
            remote_files.upload(self.directory, uri, "output_dir")
        return decoded.bad

    def digest(self) -> str:
        index = open_index(self.config)
        videos = decoding.digest_videos((part.video for part in self._clips.values()), index)
        parts = [
            digest_csv(self.config.gt_csv),
            digest_clips(self.directory, self._clips, index),
            files.combine_named_digests({video.uri: digest for video, digest in videos.items()}),
            str(self.directory),  # later steps read the frames there
            digest_left_out(self._truth),
        ]
        for row in self._truth.dropped:  # depends on which videos exist
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
    return {n: VideoFile(remote_files.remote_uri(base, n), stamp) for n, stamp in videos.items()}


def _find_files(
    table: pd.DataFrame, matches: Mapping[str, Match]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Replace the names in the column file by those of the files that they mean."""
    file = table["file"].map({name: match.file for name, match in matches.items()})
    problems = table["file"].map({name: match.problem for name, match in matches.items()})
    problems = problems.where(table["file"].str.strip() != "", "it names no file")
    table = table.assign(file=file, folder_name=file.map(stem))  # the name of a row until then
    table, dropped = drop_rows(table, problems)
    return table.drop(columns="folder_name"), dropped


def _are_whole(table: pd.DataFrame, videos: Iterable[str]) -> bool:
    """Whether the ids of a list of Kinetics are names of videos, which it cuts into segments."""
    names = {stem(name).rpartition("/")[2] for name in videos}
    return bool(table["youtube_id"].isin(names).any() and not _cut_names(table).isin(names).any())


def _cut_names(table: pd.DataFrame) -> "pd.Series[str]":
    """The names that clips of Kinetics have, `<id>_<start>_<end>`; the id where that is no time."""
    start, end = (pd.to_numeric(table[c], errors="coerce") for c in ("time_start", "time_end"))
    ids = table["youtube_id"].str.strip()
    times = [f"_{s:06.0f}_{e:06.0f}" for s, e in zip(start, end, strict=True)]
    return ids.where(~(np.isfinite(start) & np.isfinite(end)), ids + times)


def _find_kinetics_files(
    table: pd.DataFrame, videos: Mapping[str, VideoFile], notes: list[str]
) -> tuple[pd.DataFrame, list[Dropped]]:
    """Add the columns folder_name and file to a list of Kinetics: the video with that name."""
    by_stem = defaultdict[str, list[str]](list)
    for name in videos:
        by_stem[stem(name).rpartition("/")[2]].append(name)
    names = _cut_names(table)
    has_times = names != table["youtube_id"].str.strip()
    best = {n: min(by_stem[n], key=lambda file: _rank(file, videos)) for n in names if n in by_stem}
    if several := sorted(name for name in best if len(by_stem[name]) > 1):
        first = best[several[0]]
        other = next(file for file in by_stem[several[0]] if file != first)
        notes.append(
            f"{len(several)} clips have several files; {first!r} is used, and not {other!r}"
            + (", and so on" if len(several) > 1 else "")
        )
    table = table.assign(folder_name=names, file=names.map(best))
    conditions = [~has_times, table["file"].isna()]
    reasons = ["time_start or time_end is no number", f"{_MISSING} (YouTube loses some)"]
    return drop_rows(table, np.select(conditions, reasons, default=""))


def _rank(file: str, videos: Mapping[str, VideoFile]) -> tuple[bool, bool, str]:
    """Which of the files of one clip is the best: not empty, one of Kinetics' replacements."""
    return videos[file].stamp.split(" ")[0] == "0", "replacement" not in file.lower(), file


def _cut(table: pd.DataFrame, unit: segments.Unit) -> tuple[pd.DataFrame, list[Dropped]]:
    """Make each row one clip, named after its file and times; drop those without.

    Returns:
        The table with the columns start, end, segment (None for a file that is the segment
        already) and youtube_id (by default the file), and the rows that are no segments.
    """
    table = segments.add_times(table, unit)
    sources, names, parts = [], [], []
    rows = table[["file", "folder_name", "start", "end", "problem"]].itertuples(index=False)
    for file, name, start, end, problem in rows:
        cut = segments.source_of_cut_file(file, start, end) if unit == "seconds" else ""
        sources.append(cut or name)
        names.append(name if cut or problem else segments.clip_name(name, start, end, unit))
        parts.append(None if cut else Segment(start, end, unit))
    names = separate(names)
    table = table.assign(folder_name=names, segment=pd.Series(parts, table.index, dtype=object))
    ids = table.get("youtube_id", pd.Series("", table.index)).str.strip()
    table = table.assign(youtube_id=ids.where(ids != "", pd.Series(sources, table.index)))
    return drop_rows(table.drop(columns="problem"), table["problem"])


def _keep_files_together(
    truth: GroundTruth, table: pd.DataFrame, group_by: str
) -> tuple[GroundTruth, list[str]]:
    """One source for all segments of a file, and notes about overlaps and leaks."""
    # Imports scikit-learn, which takes seconds; `main` opens a source each time.
    from k400tiny_lib.data.preparation.splits import unite_groups

    clips, notes = truth.table, list[str]()
    if group_by == NONE:
        notes.append("group_by=none: segments of one file may be in several splits, which leaks")
    else:
        clips = clips.assign(group=unite_groups(clips["group"], clips["file"]))
    times = table.drop_duplicates("folder_name").set_index("folder_name")[["start", "end"]]
    pairs = list(segments.overlapping_labels(clips.join(times, on="folder_name")))
    if pairs:
        first, second = pairs[0]
        notes.append(
            f"{len(pairs)} pairs of segments overlap and have different labels, first {first} and "
            f"{second}: both are kept"
        )
    return replace(truth, table=clips), notes
