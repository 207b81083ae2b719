"""How a name in a table meets a file below data_path, and how a clip is named after its file."""

import difflib
import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import NamedTuple
from urllib.parse import unquote

from k400tiny_lib.files import bytes_digest, expand, is_remote
from k400tiny_lib.media.container.suffixes import is_video

ESCAPES_DATA_PATH = "its name leaves data_path"
_MAX_COMPARED = 5000  # files that a name without a file is compared with, to find the nearest
_MAX_HINTS = 50
_LONGEST = 255  # bytes of a folder's name
_ABSOLUTE = re.compile("/|[A-Za-z]:/")


class Match(NamedTuple):
    """The file that a name means."""

    file: str  # relative to data_path; if there is none, the name in its plainest form
    problem: str = ""  # why there is none
    is_loose: bool = False  # whether letters, suffix or folder differ


class Names:
    """The files (or clip folders) below a directory, to be found by the names that tables use.

    The exact name has priority. Then come absolute paths below the directory, names that begin with
    the end of its path, backslashes, `%20`, `.` and `..`; then absolute paths of another machine,
    by their end; after these Unicode form, case, and the suffix. A name without a folder may mean a
    file in any. A name that means several files means none.

    Args:
        base: absolute path or URI of the directory.
        files: relative paths.
        missing: what is said of a name without a file, such as "no such video".
    """

    def __init__(self, base: str, files: Iterable[str], missing: str) -> None:
        self._base = base
        self._files = set(files)
        self._missing = missing
        self._hints = _MAX_HINTS
        self._moved: set[str] = set()  # directories of another machine in place of `base`
        self._indices: dict[tuple[Callable[[str], str], bool], dict[str, list[str]]] = {}

    def find(self, name: str) -> Match:
        """The file that a name means, or why there is none."""
        if name in self._files:
            return Match(name)
        if "\0" in name:  # which no path may have
            return Match(name, ESCAPES_DATA_PATH)
        plain = plain_forms(name, self._base)
        if not plain and (inside := self._by_real_path(name)):
            plain = [inside]
        for form in plain:
            if form in self._files:
                return Match(form)
        if moved := self._by_end(name):
            return Match(moved, is_loose=True)
        if not plain:
            return Match(posixpath.normpath(name.strip()), ESCAPES_DATA_PATH)
        keys = (_same_text, _same_letters, _same_stem, _same_stem_letters)
        for key in keys:
            if match := self._unique(key, plain):
                return match
        leaves_only = [form for form in plain if "/" not in form]
        for key in keys:
            if match := self._unique(key, leaves_only, in_any_folder=True):
                return match
        return Match(plain[-1], self._missing + self._nearest(plain[-1]))

    def find_all(self, names: Iterable[str]) -> dict[str, Match]:
        """Each distinct name -> what it means."""
        return {name: self.find(name) for name in dict.fromkeys(names)}

    def _unique(
        self, key: Callable[[str], str], names: list[str], *, in_any_folder: bool = False
    ) -> Match | None:
        """The only file with the same key; a problem if there are several, None for none."""
        if (key, in_any_folder) not in self._indices:
            index = defaultdict(list)
            for file in sorted(self._files):
                index[key(posixpath.basename(file) if in_any_folder else file)].append(file)
            self._indices[key, in_any_folder] = index
        for name in names:
            files = self._indices[key, in_any_folder].get(key(name), [])
            if len(files) == 1:
                return Match(files[0], is_loose=True)
            if files:
                problem = f"{self._missing}; {files[0]!r} and {files[1]!r} are both like it"
                return Match(name, problem)
        return None

    def _by_real_path(self, name: str) -> str:
        """The file that an absolute path means through a link in the directory; "" for none."""
        if is_remote(self._base) or not name.strip().startswith("/"):
            return ""
        return self._real_paths.get(os.path.realpath(name.strip()), "")

    @cached_property
    def _real_paths(self) -> dict[str, str]:
        """Each file by its path without links."""
        folder = cache(os.path.realpath)
        split = ((file, *posixpath.split(f"{self._base}/{file}")) for file in self._files)
        return {f"{folder(above)}/{leaf}": file for file, above, leaf in split}

    def _by_end(self, name: str) -> str:
        """The file that the end of an absolute path of another machine means; "" for none."""
        path = posixpath.normpath(expand(name.strip()).replace("\\", "/"))
        if not _ABSOLUTE.match(path) or os.path.lexists(path):  # it means that file
            return ""
        parts = path.split("/")
        ends = ("/".join(parts[start:]) for start in range(1, len(parts)))  # the longest first
        end = next((end for end in ends if end in self._files), "")
        start = path.removesuffix(end)
        # Where /videos/ is data_path, /videos/run/a.mp4 is not its a.mp4.
        if not end or start.startswith(f"{self._base}/") or self._nests(start):
            return ""
        self._moved.add(start)
        return end

    def _nests(self, start: str) -> bool:
        """Whether a directory is in another one that took the place of data_path, or around it."""
        others = self._moved - {start}
        return any(start.startswith(other) or other.startswith(start) for other in others)

    def _nearest(self, name: str) -> str:
        if not self._hints or len(self._files) > _MAX_COMPARED:
            return ""
        self._hints -= 1
        near = difflib.get_close_matches(name, sorted(self._files), n=1, cutoff=0.8)
        return f" (the nearest is {near[0]!r})" if near else ""


def note_loose(matches: Mapping[str, Match]) -> list[str]:
    """A note about names that are not those of their files."""
    loose = [(name, match.file) for name, match in matches.items() if match.is_loose]
    if not loose:
        return []
    name, file = loose[0]
    return [
        f"{len(loose)} name(s) in gt_csv are not quite those below data_path (case, suffix, "
        f"folder), first {name!r}, which is {file!r}"
    ]


def plain_forms(name: str, base: str) -> list[str]:
    """The relative paths that a name may mean, most literal first; none if it leaves the directory.

    Args:
        name: as in the table.
        base: absolute path or URI of the directory.
    """
    if "\0" in name or not name.strip():
        return []
    forms = dict.fromkeys(_relative(text, base) for text in (name, expand(name.strip())))
    forms |= dict.fromkeys(_relative(form.replace("\\", "/"), base) for form in list(forms))
    forms |= dict.fromkeys(_relative(unquote(form), base) for form in list(forms))
    relative = {form: None for form in forms if form and not leaves(form)}
    tail = base.strip("/").split("/")
    for form in list(relative):
        for start in range(1, len(tail) + 1):  # the longest end of the path first
            prefix = "/".join(tail[start - 1 :]) + "/"
            if form.startswith(prefix) and form != prefix:
                relative[form.removeprefix(prefix)] = None
    return list(relative)


def is_folder(base: str, name: str) -> bool:
    """Whether a local directory has a folder; Path.is_dir raises where there is no permission."""
    return os.path.isdir(f"{base}/{name}")  # noqa: PTH112


def leaves(name: str) -> bool:
    """Whether a normal relative path is not below its directory."""
    return name.startswith("/") or name in (".", "..") or name.startswith("../") or "\0" in name


def _relative(name: str, base: str) -> str:
    if name.startswith(f"{base}/"):
        name = name.removeprefix(f"{base}/").lstrip("/")
    elif name.startswith("/") and not is_remote(base):
        folder, leaf = posixpath.split(posixpath.normpath(name))
        real, root = os.path.realpath(folder), os.path.realpath(base)
        if real == root or real.startswith(f"{root.rstrip('/')}/"):
            name = posixpath.join(os.path.relpath(real, root), leaf)
    return posixpath.normpath(name) if name else ""


def _same_text(name: str) -> str:
    """Equal for names that differ in the Unicode form and in spaces around the parts of a path."""
    return "/".join(part.strip() for part in unicodedata.normalize("NFC", name).split("/"))


def _same_letters(name: str) -> str:
    return _same_text(name).casefold()


def _same_stem(name: str) -> str:
    return stem(_same_text(name))


def _same_stem_letters(name: str) -> str:
    return _same_stem(name).casefold()


def stem(name: str) -> str:
    """A path without the suffixes of videos: `a` for a.mp4, and for the a.mp4.mkv of yt-dlp."""
    while is_video(name) and not name.rpartition("/")[2].startswith("."):
        name = posixpath.splitext(name)[0]
    return name


def normal_name(name: str) -> str:
    """A path as the name of a clip: no `.`, no doubled slashes, no spaces around its parts."""
    return "/".join(part.strip() or "_" for part in posixpath.normpath(name).split("/"))


def name_clips(files: Iterable[str]) -> dict[str, str]:
    """Name the clip folder of each video: its path without the suffix, where that is unambiguous.

    No two names are equal, on file systems without case either, and none is a folder above another:
    `a.mp4` keeps its suffix next to `a.avi` or to a folder `a` with videos. The names depend on
    the set of files alone.
    """
    levels: list[Callable[[str], str]] = [
        lambda file: normal_name(posixpath.splitext(file)[0] if is_video(file) else file),
        normal_name,
        lambda file: f"{normal_name(file)}~{bytes_digest(os.fsencode(file))[:8]}",
    ]
    level = dict.fromkeys(sorted(files), 0)
    while True:
        names = {file: levels[number](file) for file, number in level.items()}
        clashing = [file for file in _clashing(names) if level[file] < len(levels) - 1]
        if not clashing:
            return names
        lowest = min(level[file] for file in clashing)
        for file in clashing:
            level[file] += level[file] == lowest


def separate(names: Sequence[str]) -> list[str]:
    """Names of clips, made distinct where one is above another, and short enough for a folder."""
    clashing = set(_clashing({name: name for name in names}))
    return [
        f"{_cut_leaf(name)}~{bytes_digest(os.fsencode(name))[:8]}"
        if name in clashing or len(os.fsencode(name.rpartition("/")[2])) > _LONGEST
        else name
        for name in names
    ]


def _cut_leaf(name: str) -> str:
    folder, slash, leaf = name.rpartition("/")
    return folder + slash + os.fsencode(leaf)[: _LONGEST - 9].decode("utf-8", "ignore")


def _clashing(names: dict[str, str]) -> Iterator[str]:
    """The files with the same name as another one, or with one above or below another."""
    by_key = defaultdict(list)
    for file, name in names.items():
        by_key[_same_letters(name)].append(file)
    bad = {key for key, files in by_key.items() if len(files) > 1}
    for key in by_key:
        parts = key.split("/")
        for end in range(1, len(parts)):
            above = "/".join(parts[:end])
            if above in by_key:
                bad.add(above)
    for key in sorted(bad):
        yield from by_key[key]
