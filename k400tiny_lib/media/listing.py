"""What a directory holds: the videos and frame folders in it, and what is left out, with reasons.

`prepare_data` and `predict` use the same walk, for local directories and for buckets. Links are
followed. Hidden files and what the pipeline wrote itself are passed over.
"""

import posixpath
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from k400tiny_lib.errors import UserError, is_utf8, printable
from k400tiny_lib.files import Stamps
from k400tiny_lib.media.folders import (
    CIRCLE,
    SPECIAL,
    Entries,
    Folders,
    LocalFolders,
    RemoteFolders,
)
from k400tiny_lib.media.frames import is_frame
from k400tiny_lib.media.video import is_video

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
    lines = []
    for reason, paths in by_reason.items():
        more = len(paths) - max_names
        names = ", ".join(paths[:max_names]) + (f" and {more} more" if more > 0 else "")
        lines.append(f"left out {len(paths)} ({printable(reason)}): {names}")
    if others:
        suffixes = (posixpath.splitext(path)[1].lower() for path in others)
        counts = Counter(suffix or "without a suffix" for suffix in suffixes)
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
        lines.append(f"left out {len(others)} ({NOT_A_CLIP}): {kinds}")
    return lines


@dataclass
class _Below:
    """The clips in a folder and below it, and how many frames and videos they are."""

    clips: list[str] = field(default_factory=list)
    frames: int = 0
    videos: int = 0

    def add(self, other: "_Below") -> None:
        self.clips += other.clips
        self.frames += other.frames
        self.videos += other.videos


class _Walk:
    """Visits all folders, sub-folders first, and decides what each file is."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._videos: dict[str, str] = {}
        self._frame_folders: dict[str, str] = {}
        self._unusable: dict[str, str] = {}
        self._left_out: dict[str, str] = {}
        self._own: list[str] = []

    def listing(
        self, entries: Entries, *, is_clip: bool = False, stamps: Stamps | None = None
    ) -> Listing:
        below = self._visit("", entries, may_be_clip=is_clip)
        parts = (self._videos, self._frame_folders, self._unusable, self._left_out)
        videos, frame_folders, unusable, left_out = (dict(sorted(part.items())) for part in parts)
        clips, own = tuple(sorted(below.clips)), tuple(sorted(self._own))
        return Listing(clips, videos, frame_folders, unusable, left_out, own, stamps)

    def _enter(self, folder: str) -> _Below:
        name = posixpath.basename(folder)
        if not is_utf8(name):
            self._unusable[_text(folder)] = NOT_UTF8
        elif name.casefold() in _SYSTEM_NAMES:
            self._left_out[folder] = SYSTEM
        elif folder.count("/") >= _MAX_DEPTH:
            self._unusable[folder] = f"more than {_MAX_DEPTH} folders deep"
        elif self._folders.is_own(folder):
            self._own.append(folder)
        else:
            try:
                entries = self._folders.entries(folder)
            except OSError as error:
                self._unusable[folder] = f"cannot be read: {error.strerror}"
            else:
                return self._visit(folder, entries)
        return _Below()

    def _visit(self, folder: str, entries: Entries, *, may_be_clip: bool = True) -> _Below:
        below = _Below()
        for name in entries.folders:
            below.add(self._enter(posixpath.join(folder, name)))
        pictures = [name for name in (*entries.files, *entries.odd) if is_frame(name)]
        others = []
        for name in entries.files:
            if is_video(name) and is_utf8(name):
                path = posixpath.join(folder, name)
                self._videos[path] = self._folders.stamp(path)
                below.add(_Below([path], videos=1))
            elif not is_frame(name):
                others.append(name)
        self._leave_out_odd(folder, entries.odd)
        if pictures:
            self._frame_folders[folder] = _problem(pictures, entries.odd)
            if may_be_clip and _are_frames(len(pictures), below):
                self._left_out |= dict.fromkeys(below.clips, WITHIN_A_CLIP)
                below = _Below([folder], frames=len(pictures))
            else:
                others += pictures
        elif not below.clips:
            others = self._leave_out_folder(folder, entries, others)
        for name in others:
            self._leave_out(posixpath.join(folder, name), name)
        return below

    def _leave_out_folder(self, folder: str, entries: Entries, others: list[str]) -> list[str]:
        """Leave out a folder without clips as a whole; returns its files still to be named."""
        if folder and not any(entries):
            self._left_out[folder] = EMPTY
        is_picture = {name: posixpath.splitext(name)[1].lower() in _PICTURES for name in others}
        if any(is_picture.values()):
            self._left_out[folder or "."] = OTHER_PICTURES
        return [name for name in others if not is_picture[name]]

    def _leave_out_odd(self, folder: str, odd: Mapping[str, str]) -> None:
        for name, reason in odd.items():
            path = _text(posixpath.join(folder, name))
            if is_frame(name):
                continue
            if reason == CIRCLE:
                self._left_out[path] = CIRCLE
            elif is_video(name) or not (reason.startswith(SPECIAL) or _is_by_product(name)):
                self._unusable[path] = reason
            else:
                self._left_out[path] = NOT_A_CLIP

    def _leave_out(self, path: str, name: str) -> None:
        if is_video(name):  # else it would have been listed
            self._unusable[_text(path)] = NOT_UTF8
        elif name.casefold() in _SYSTEM_NAMES:
            self._left_out[path] = SYSTEM
        else:
            harmless = is_frame(name) or _is_by_product(name)
            self._left_out[_text(path)] = NOT_A_CLIP if harmless else UNKNOWN_SUFFIX


def _text(path: str) -> str:
    """A path as it is; other bytes than UTF-8 escaped."""
    return path if is_utf8(path) else printable(path)


def _is_by_product(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in _BY_PRODUCTS


def _problem(pictures: list[str], odd: Mapping[str, str]) -> str:
    """Why the frames of a folder cannot be read, to judge by their names and kinds."""
    for name in sorted(pictures):
        # A broken link, say, is found when the frames are checked.
        if odd.get(name, "").startswith(SPECIAL):
            return f"{printable(name)} is {odd[name]}"
        if not is_utf8(name):
            return f"{printable(name)}: {NOT_UTF8}"
    return ""


def _are_frames(num_pictures: int, below: _Below) -> bool:
    """Whether the pictures of a folder are the frames of a clip, and not previews of clips.

    One video next to many pictures is what they were cut from, or a preview.
    """
    if below.videos > 1 or (below.videos and num_pictures < _FEWEST_FRAMES_WITH_VIDEO):
        return False
    return num_pictures >= below.frames
