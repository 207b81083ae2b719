"""A directory with one folder per class, and clip folders or videos inside."""

import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from k400tiny_lib.errors import UserError
from k400tiny_lib.files import is_remote, list_files, local_path
from k400tiny_lib.media.frames import is_frame
from k400tiny_lib.media.video import is_video

_NEEDED = "Needed: gt_csv, or one folder per class with clip folders or videos inside."


def class_folder_rows(data_path: str) -> tuple[pd.DataFrame, bool]:
    """Read labels from folder names.

    Returns:
        Rows with label and folder_name (`class/clip`), for videos with file in place of the
        latter; and whether they are videos.

    Raises:
        UserError: if the directory is missing, has another layout, or mixes both kinds.
    """
    entries = sorted(_remote(data_path) if is_remote(data_path) else _local(data_path))
    kinds = {kind for _, _, kind in entries}
    if not entries:
        raise UserError(f"data_path: {data_path} holds no clips in class folders. {_NEEDED}")
    if "frame" in kinds:
        folder = next(label for label, _, kind in entries if kind == "frame")
        raise UserError(
            f"data_path: {data_path}/{folder} holds frames, so it is a clip and no class, and "
            f"gt_csv is none. {_NEEDED}"
        )
    if len(kinds) > 1:
        raise UserError(
            f"data_path: {data_path} holds both videos and clip folders. Needed: one kind."
        )
    videos = kinds == {"video"}
    rows = [(label, f"{label}/{name}") for label, name, _ in entries]
    return pd.DataFrame(rows, columns=["label", "file" if videos else "folder_name"]), videos


def _kind(name: str, is_folder: bool) -> str:
    if name.startswith("."):
        return ""
    return "folder" if is_folder else "video" if is_video(name) else "frame" * is_frame(name)


def _local(data_path: str) -> Iterator[tuple[str, str, str]]:
    """(class, name, kind) of everything of interest on the second level."""
    root = local_path(data_path)
    if not root.is_dir():
        raise UserError(f"data_path: {data_path} is not a directory. {_NEEDED}")
    for label in sorted(path for path in root.iterdir() if path.is_dir()):
        if label.name.startswith("."):
            continue
        with os.scandir(label) as children:
            for child in children:
                if kind := _kind(child.name, child.is_dir()):
                    yield label.name, child.name, kind


def _remote(data_path: str) -> set[tuple[str, str, str]]:
    parts = [Path(name).parts for name in list_files(data_path, "data_path")]
    found = {(p[0], p[1], _kind(p[1], len(p) > 2)) for p in parts if len(p) > 1}
    return {entry for entry in found if entry[2]}
