"""What a directory holds: the videos and frame folders in it, and what is left out, with reasons.

`prepare_data` and `predict` use the same walk, for local directories and for buckets. Links are
followed. Hidden files and what the pipeline wrote itself are passed over.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from k400tiny_lib.errors import UserError, is_utf8, listed, printable
from k400tiny_lib.files import Stamps
from k400tiny_lib.media import own_output
from k400tiny_lib.media.container.suffixes import is_video
from k400tiny_lib.media.folders import (
    CIRCLE,
    SPECIAL,
    Entries,
    Folders,
    LocalFolders,
    RemoteFolders,
)
from k400tiny_lib.media.frame_names import natural_order
from k400tiny_lib.media.frames import is_frame

NOT_UTF8 = "its name is not UTF-8"
NOT_A_CLIP = "no video and no frame of a clip"
SYSTEM = "made by an operating system or a device"
WITHIN_A_CLIP = "within the folder of a clip"
UNKNOWN_SUFFIX = "neither the suffix of a video nor of a frame"
EMPTY = "an empty folder"
OTHER_PICTURES = "a folder of pictures, but none is .jpg, .jpeg or .png"
_HARMLESS = (NOT_A_CLIP, SYSTEM, CIRCLE)

_MAX_DEPTH = 60  # folders
_FEWEST_FRAMES_WITH_VIDEO = 8  # fewer pictures than that next to a video are previews of it
_SYSTEM_NAMES = {
    *("__macosx", "@eadir", "#recycle", "@recycle", "#snapshot", "$recycle.bin", "recycler"),
    *("system volume information", "lost+found", "lost.dir", "thumbs.db", "desktop.ini"),
    *("ehthumbs.db", "__pycache__"),
}
_PICTURE_SUFFIXES = ".webp .bmp .tif .tiff .jp2 .ppm .pgm .heic .heif .avif .jfif .jpe .dng"
_BY_PRODUCT_SUFFIXES = """
.txt .md .rst .pdf .doc .docx .html .htm .url .nfo .log .tex .rtf .odt .bib
.csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .xls .xlsx .ods .parquet
.srt .vtt .ass .ssa .sub .idx .lrc .ttml .eaf .pfsx .boris .description
.wav .mp3 .m4a .aac .flac .oga .opus .wma .mid .thm .torrent .lnk .lock .bak
.npy .npz .pkl .pickle .pt .pth .ckpt .onnx .safetensors .h5 .hdf5 .mat
.db .sqlite .py .ipynb .sh .bat .ps1 .m .r .c .cpp .h .js .css .svg .ico .md5 .sha1 .sha256
"""
_PICTURES = {*_PICTURE_SUFFIXES.split()}
_BY_PRODUCTS = {*_BY_PRODUCT_SUFFIXES.split(), *_PICTURES}


@dataclass(frozen=True)
class Listing:
    """What a directory holds; paths are relative to it, with `/`, and UTF-8.

    Attributes:
        clips: the videos and frame folders that are clips, sorted; the empty path is the
            directory itself.
        videos: every video -> its stamp.
        frame_folders: every folder with frames -> why they cannot be read, empty if they can.
        unusable: what is, or may hold, a clip and cannot be read -> why.
        left_out: everything else -> why it is no clip.
        own: directories that the pipeline made.
        stamps: of all files of a bucket; None for a local directory.
    """

    clips: tuple[str, ...]
    videos: Mapping[str, str]
    frame_folders: Mapping[str, str]
    unusable: Mapping[str, str]
    left_out: Mapping[str, str]
    own: tuple[str, ...] = ()
    stamps: Stamps | None = None

    def to_label(self) -> tuple[list[str], dict[str, str]]:
        """The clips to label in natural order of their names, and what cannot be read -> why."""
        broken = {clip: why for clip in self.clips if (why := self.frame_folders.get(clip))}
        unusable = {**self.unusable, **broken}
        sound = (clip for clip in self.clips if clip not in unusable)
        names = sorted(sound, key=lambda name: [natural_order(part) for part in name.split("/")])
        return names, unusable


def list_directory(root: Path, parameter: str, needed: str, *, is_clip: bool = False) -> Listing:
    """Walk a local directory.

    Args:
        root: the directory.
        parameter: the parameter that named it, for the message.
        needed: what is needed, for the message.
        is_clip: whether pictures in the directory itself may be the frames of a clip.

    Raises:
        UserError: if it is no directory or cannot be listed.
    """
    folders = LocalFolders(root)
    try:
        entries = folders.entries("")
    except OSError as error:
        no_directory = isinstance(error, FileNotFoundError | NotADirectoryError)
        problem = "is not a directory" if no_directory else f"cannot be read: {error.strerror}"
        raise UserError(
            f"{parameter}: {printable(str(root))} {problem}. Needed: {needed}."
        ) from None
    return _Walk(folders).listing(entries, is_clip=is_clip)


def list_stamps(stamps: Stamps) -> Listing:
    """Arrange the files of a bucket, as `files.list_files` names them."""
    folders = RemoteFolders(stamps)
    return _Walk(folders).listing(folders.entries(""), stamps=stamps)


def may_be_clips(left_out: Mapping[str, str]) -> list[str]:
    """The paths left out that somebody could have meant as clips."""
    return [path for path, reason in left_out.items() if reason not in _HARMLESS]


def describe_left_out(left_out: Mapping[str, str], max_names: int = 20) -> list[str]:
    """What was left out as lines for the console: by reason; files that are no clips by suffix."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in left_out.items():
        by_reason.setdefault(reason, []).append(printable(path))
    others = by_reason.pop(NOT_A_CLIP, [])
    lines = [
        f"left out {len(paths)} ({printable(reason)}): {listed(paths, max_names)}"
        for reason, paths in by_reason.items()
    ]
    if others:
        counts = Counter(_suffix(path) or "without a suffix" for path in others)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        lines.append(f"left out {len(others)} ({NOT_A_CLIP}): {kinds}")
    return lines


class _Walk:
    """Visits all folders, sub-folders first, and decides what each file is."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._videos: dict[str, str] = {}
        self._frame_folders: dict[str, str] = {}
        self._num_frames: dict[str, int] = {}  # of the frame folders that are clips
        self._unusable: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._own: list[str] = []

    def listing(
        self, entries: Entries, *, is_clip: bool = False, stamps: Stamps | None = None
    ) -> Listing:
        clips = self._visit("", entries, may_be_clip=is_clip)
        parts = (self._videos, self._frame_folders, self._unusable, self._left_out)
        videos, frame_folders, unusable, left_out = (dict(sorted(part.items())) for part in parts)
        own = tuple(sorted(self._own))
        return Listing(tuple(sorted(clips)), videos, frame_folders, unusable, left_out, own, stamps)

    def _enter(self, folder: str) -> list[str]:
        """The clips in a folder and below it; none if it is left out."""
        name = posixpath.basename(folder)
        if not is_utf8(name):
            self._unusable[_text(folder)] = NOT_UTF8
        elif name.casefold() in _SYSTEM_NAMES:
            self._left_out[folder] = SYSTEM
        elif folder.count("/") >= _MAX_DEPTH:
            self._unusable[folder] = f"more than {_MAX_DEPTH} folders deep"
        elif own_output.is_own(name, self._folders.files_below(folder)):
            self._own.append(folder)
        else:
            try:
                entries = self._folders.entries(folder)
            except OSError as error:
                self._unusable[folder] = f"cannot be read: {error.strerror}"
            else:
                return self._visit(folder, entries)
        return []

    def _visit(self, folder: str, entries: Entries, *, may_be_clip: bool = True) -> list[str]:
        clips = [c for name in entries.folders for c in self._enter(posixpath.join(folder, name))]
        pictures = [name for name in (*entries.files, *entries.odd) if is_frame(name)]
        others = []
        for name in entries.files:
            if is_video(name) and is_utf8(name):
                clips.append(posixpath.join(folder, name))
                self._videos[clips[-1]] = self._folders.stamp(clips[-1])
            elif not is_frame(name):
                others.append(name)
        if pictures:
            self._frame_folders[folder] = _problem(pictures, entries.odd)
            if may_be_clip and self._are_frames(len(pictures), clips):
                self._left_out |= dict.fromkeys(clips, WITHIN_A_CLIP)
                self._num_frames[folder] = len(pictures)
                clips = [folder]
            else:
                others += pictures
        elif not clips and any(_suffix(name) in _PICTURES for name in others):
            self._left_out[folder or "."] = OTHER_PICTURES
            others = [name for name in others if _suffix(name) not in _PICTURES]
        elif folder and not any(entries):
            self._left_out[folder] = EMPTY
        for name, problem in [*dict.fromkeys(others, "").items(), *entries.odd.items()]:
            if not (problem and is_frame(name)):
                self._leave_out(posixpath.join(folder, name), problem)
        return clips

    def _are_frames(self, num_pictures: int, clips: list[str]) -> bool:
        """Whether the pictures of a folder are the frames of a clip, and not previews of `clips`.

        One video next to many pictures is what they were cut from, or a preview.
        """
        num_videos = sum(clip in self._videos for clip in clips)
        if num_videos > 1 or (num_videos and num_pictures < _FEWEST_FRAMES_WITH_VIDEO):
            return False
        return num_pictures >= sum(self._num_frames.get(clip, 0) for clip in clips)

    def _leave_out(self, path: str, problem: str) -> None:
        """Name a file that belongs to no clip; `problem` says why it is no regular file."""
        name, path = posixpath.basename(path), _text(path)
        if name.casefold() in _SYSTEM_NAMES:
            self._left_out[path] = SYSTEM
        elif problem == CIRCLE:
            self._left_out[path] = CIRCLE
        elif is_video(name):
            self._unusable[path] = problem or NOT_UTF8
        elif is_frame(name) or _suffix(name) in _BY_PRODUCTS or problem.startswith(SPECIAL):
            self._left_out[path] = NOT_A_CLIP
        elif problem:
            self._unusable[path] = problem
        else:
            self._left_out[path] = UNKNOWN_SUFFIX


def _text(path: str) -> str:
    """A path as it is; other bytes than UTF-8 escaped."""
    return path if is_utf8(path) else printable(path)


def _suffix(path: str) -> str:
    return posixpath.splitext(path)[1].lower()


def _problem(pictures: list[str], odd: Mapping[str, str]) -> str:
    """Why the frames of a folder cannot be read, to judge by their names and kinds."""
    for name in sorted(pictures):
        # A broken link, say, is found when the frames are checked.
        if odd.get(name, "").startswith(SPECIAL):
            return f"{printable(name)} is {odd[name]}"
        if not is_utf8(name):
            return f"{printable(name)}: {NOT_UTF8}"
    return ""
