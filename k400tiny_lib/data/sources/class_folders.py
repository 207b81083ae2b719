"""Labels from folder names: one folder per class, with clip folders or videos inside."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import Stamps, file_stamp, is_remote, list_files, local_path
from k400tiny_lib.media.frames import is_frame
from k400tiny_lib.media.video import is_video

_NEEDED = "Needed: gt_csv, or one folder per class with clip folders or videos inside."


@dataclass(frozen=True)
class ClassFolders:
    """What one listing of class folders finds.

    Attributes:
        table: one row per clip: label, and folder_name (`class/clip`), or file for videos.
        holds_videos: whether the clips are videos.
        stamps: of the videos, or of all files in a bucket.
    """

    table: pd.DataFrame
    holds_videos: bool
    stamps: Stamps | None


def list_class_folders(data_path: str) -> ClassFolders:
    """Read labels from folder names.

    Raises:
        UserError: if the directory is missing, has another layout, or mixes both kinds.
    """
    stamps = list_files(data_path, "data_path") if is_remote(data_path) else None
    entries = sorted(_local(data_path) if stamps is None else set(_remote(stamps)))
    kinds = {kind for _, _, kind, _ in entries}
    if not entries:
        raise UserError(f"data_path: {data_path} holds no clips in class folders. {_NEEDED}")
    if "frame" in kinds:
        folder = next(label for label, _, kind, _ in entries if kind == "frame")
        raise UserError(
            f"data_path: {data_path}/{folder} holds frames, so it is a clip and no class, and "
            f"gt_csv is none. {_NEEDED}"
        )
    if len(kinds) > 1:
        raise UserError(
            f"data_path: {data_path} holds both videos and clip folders. Needed: one kind."
        )
    holds_videos = kinds == {"video"}
    rows = [(label, f"{label}/{name}") for label, name, _, _ in entries]
    table = pd.DataFrame(rows, columns=["label", "file" if holds_videos else "folder_name"])
    if stamps is None and holds_videos:
        stamps = {f"{label}/{name}": stamp for label, name, _, stamp in entries if stamp}
    return ClassFolders(table, holds_videos, stamps)


def _local(data_path: str) -> Iterator[tuple[str, str, str, str]]:
    """(class, name, kind, stamp) of the second level; only videos need a stamp."""
    root = local_path(data_path)
    if not root.is_dir():
        raise UserError(f"data_path: {data_path} is not a directory. {_NEEDED}")
    with os.scandir(root) as entries:
        labels = [e for e in entries if e.is_dir() and not e.name.startswith(".")]
    for label in labels:
        with os.scandir(label) as children:
            for child in children:
                if kind := _kind(child.name, child.is_dir()):
                    stamp = file_stamp(child) if kind == "video" else ""
                    yield label.name, child.name, kind, stamp


def _remote(stamps: Stamps) -> Iterator[tuple[str, str, str, str]]:
    for path, stamp in stamps.items():
        label, *rest = Path(path).parts
        if rest and (kind := _kind(rest[0], is_folder=len(rest) > 1)):
            yield label, rest[0], kind, stamp if kind == "video" else ""


def _kind(name: str, is_folder: bool) -> str:
    if name.startswith("."):
        return ""
    if is_folder:
        return "folder"
    if is_video(name):
        return "video"
    return "frame" if is_frame(name) else ""
