"""Labels from folder names: one folder per class, perhaps within one folder per split.

A clip is a video or a frame folder at any depth below the folder of its class.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from k400tiny_lib.data.sources.ground_truth import SPLIT_BY_WORD
from k400tiny_lib.data.sources.left_out import list_data
from k400tiny_lib.errors import UserError, printable
from k400tiny_lib.media.listing import Listing

_NEEDED = "gt_csv, or one folder per class with clip folders or videos inside"
_NO_CLASS = "in no class folder"
_NO_SPLIT = "in no folder of a split"
# More clips of another kind, or outside of the splits, are no strays: somebody means them.
_MOST_STRAYS = 0.25


@dataclass(frozen=True)
class ClassFolders:
    """What one listing of class folders finds.

    Attributes:
        table: one row per clip: label, and folder_name (`class/clip`), or file for videos; split
            where the first folders are splits.
        holds_videos: whether the clips are videos.
        listing: of the directory; its clips are those of the table.
    """

    table: pd.DataFrame
    holds_videos: bool
    listing: Listing


def list_class_folders(data_path: str) -> ClassFolders:
    """Read labels, and splits, from folder names.

    Raises:
        UserError: if the directory is missing, has another layout, or mixes both kinds.
    """
    listing = list_data(data_path, _NEEDED)
    in_splits = _in_splits(data_path, listing.clips)
    depth = 2 if in_splits else 1  # folders above a clip
    inside = in_splits or listing.clips
    labeled = [clip for clip in inside if clip.count("/") >= depth]
    outside = [clip for clip in inside if clip.count("/") < depth]
    if len(outside) > len(labeled) or not labeled:
        raise _no_classes(data_path, listing, outside, has_splits=bool(in_splits))
    clips, strays = _majority(data_path, listing, labeled)
    left_out = dict.fromkeys({*listing.clips} - {*inside}, _NO_SPLIT)
    left_out |= dict.fromkeys(outside, _NO_CLASS) | strays
    listing = replace(
        listing, clips=tuple(clips), left_out=dict(sorted({**listing.left_out, **left_out}.items()))
    )
    holds_videos = clips[0] in listing.videos
    rows = [(clip.split("/")[depth - 1], clip) for clip in clips]
    table = pd.DataFrame(rows, columns=["label", "file" if holds_videos else "folder_name"])
    if in_splits:
        table["split"] = [clip.partition("/")[0] for clip in clips]
    return ClassFolders(table, holds_videos, listing)


def _in_splits(data_path: str, clips: Sequence[str]) -> list[str]:
    """The clips in folders with the names of splits; none where these are classes.

    A single one such as `train` may be a class, unless there are folders in it and no others.

    Raises:
        UserError: if there are several, and too many clips in other folders.
    """
    nested = [clip for clip in clips if "/" in clip] or clips
    splits = {clip: SPLIT_BY_WORD.get(clip.partition("/")[0].casefold()) for clip in nested}
    others = [clip for clip, split in splits.items() if split is None]
    num_splits = len({*splits.values()} - {None})
    if num_splits > 1 and len(others) > _MOST_STRAYS * len(nested):
        raise UserError(
            f"data_path: {data_path} holds folders of splits (train, val, test) and others, first "
            f"{printable(others[0])!r}. Needed: splits only, or classes only."
        )
    if num_splits > 1 or (not others and all(clip.count("/") > 1 for clip in nested)):
        return [clip for clip in nested if splits[clip]]
    return []


def _majority(
    data_path: str, listing: Listing, clips: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The clips of the more frequent kind, and a few of the other kind with the reason."""
    videos = [clip for clip in clips if clip in listing.videos]
    folders = [clip for clip in clips if clip not in listing.videos]
    few, many = sorted((videos, folders), key=len)
    if len(few) > _MOST_STRAYS * len(clips):
        first = f"{printable(videos[0])!r} and {printable(folders[0])!r}"
        raise UserError(
            f"data_path: {data_path} holds both videos and clip folders: {len(videos)} and "
            f"{len(folders)}, first {first}. Needed: one kind."
        )
    kind = "a folder of pictures among videos" if many is videos else "a video among clip folders"
    return many, dict.fromkeys(few, kind)


def _no_classes(
    data_path: str, listing: Listing, outside: Sequence[str], *, has_splits: bool
) -> UserError:
    """The error for a directory without class folders, with what it holds instead."""
    if has_splits and outside:
        holds = f"holds splits without class folders in them, first {printable(outside[0])!r}"
    elif folder := next((clip for clip in outside if clip not in listing.videos), ""):
        holds = f"/{printable(folder)} holds frames, so it is a clip and no class"
        return UserError(f"data_path: {data_path}{holds}, and gt_csv is none. Needed: {_NEEDED}.")
    else:
        holds = "holds no clips in class folders"
        seen = {**dict.fromkeys(outside, _NO_CLASS), **listing.unusable, **listing.left_out}
        if seen:
            path, reason = next(iter(seen.items()))
            holds += f" (left out: {len(seen)}, first {printable(path)!r}: {reason})"
        elif listing.own:
            holds += f", only what prepare_data made itself ({listing.own[0]})"
    return UserError(f"data_path: {data_path} {holds}. Needed: {_NEEDED}.")
