"""What lies below data_path and does not become a clip: it is counted and named."""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from k400tiny_lib.config import NONE, Config
from k400tiny_lib.data.sources.ground_truth import SPLIT_BY_WORD, Dropped, GroundTruth, drop_rows
from k400tiny_lib.data.tables.names import Match
from k400tiny_lib.files import combine_named_digests, is_remote, local_path
from k400tiny_lib.media.container.suffixes import is_video
from k400tiny_lib.media.frames import is_frame
from k400tiny_lib.media.listing import Listing, list_directory, list_stamps, may_be_clips
from k400tiny_lib.remote_files import list_files

NO_ROW = "no row of gt_csv names it"


def list_data(data_path: str, needed: str = "a directory of videos or frame folders") -> Listing:
    """List a local or remote directory; `needed` is for the message.

    Raises:
        UserError: if it cannot be listed.
    """
    if is_remote(data_path):
        return list_stamps(list_files(data_path, "data_path"))
    return list_directory(local_path(data_path), "data_path", needed)


def account_for(
    truth: GroundTruth, listing: Listing, config: Config, named: Iterable[str]
) -> GroundTruth:
    """Add to a ground truth what its directory holds and no row names.

    Clips of class folders that cannot be read are dropped, as bad rows are; with a CSV, which may
    be meant for a part of the directory, they are left out.

    Args:
        truth: the rows.
        listing: of data_path.
        config: data_path and gt_csv.
        named: paths of all videos or frame folders that rows name, dropped rows included.
    """
    known = {*named, _path_of_csv(config)}
    table, dropped = truth.table, list(truth.dropped)
    if "file" not in table.columns:
        problems = [listing.frame_folders.get(name, "") for name in table["folder_name"]]
        table, bad = drop_rows(table, problems)
        dropped += bad
    left_out = {clip: NO_ROW for clip in listing.clips if clip not in known}
    unusable = {path: why for path, why in listing.unusable.items() if path not in known}
    if config.gt_csv == NONE:
        dropped += _drop(unusable, listing.clips)
    else:
        left_out |= unusable
    for path, why in listing.left_out.items():
        is_of_clip = is_frame(path) and posixpath.dirname(path) in known
        if path not in known and not is_of_clip:
            left_out[path] = why
    return replace(truth, table=table, dropped=dropped, left_out=left_out)


def _drop(unusable: Mapping[str, str], clips: Iterable[str]) -> Iterator[Dropped]:
    """What cannot be read, with its label: the folder below the split, if the first are splits."""
    has_splits = all(
        clip.count("/") > 1 and SPLIT_BY_WORD.get(clip.partition("/")[0].casefold())
        for clip in clips
    )
    for path, why in unusable.items():
        parts = path.split("/")[1 if has_splits else 0 :]
        has_label = len(parts) > 1 or (parts and not is_video(path))  # or is in no class
        yield Dropped(path, why, (parts[0],) if has_label else ())


def explain(matches: Mapping[str, Match], listing: Listing) -> dict[str, Match]:
    """Say of names without a file that the file, or a folder above it, cannot be read."""
    explained = dict(matches)
    for name, match in matches.items():
        if match.problem:
            above = map(str, PurePosixPath(match.file).parents)
            unusable = next((path for path in (match.file, *above) if path in listing.unusable), "")
            if unusable:
                folder = "" if unusable == match.file else f"the folder {unusable} "
                explained[name] = match._replace(problem=folder + listing.unusable[unusable])
    return explained


def digest_left_out(truth: GroundTruth) -> str:
    """Digest of what somebody could miss: a run that is used again would not tell of it."""
    missed = may_be_clips(truth.left_out)
    return combine_named_digests({path: truth.left_out[path] for path in missed})


def _path_of_csv(config: Config) -> str:
    """The CSV's path below data_path; empty if it lies elsewhere."""
    if config.gt_csv == NONE:
        return ""
    if is_remote(config.data_path):
        csv, root = config.gt_csv, config.data_path
    else:
        csv, root = str(local_path(config.gt_csv)), str(local_path(config.data_path))
    return csv.removeprefix(f"{root}/") if csv.startswith(f"{root}/") else ""
