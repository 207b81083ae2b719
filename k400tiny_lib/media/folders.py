"""The entries of a folder, local or in a bucket, as `listing` needs them."""

import os
import posixpath
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from k400tiny_lib.files import Stamps, file_stamp

CIRCLE = "a link to a folder that contains it"
SPECIAL = "no regular file but "  # how the reason for a pipe, a socket or a device begins
# A directory that is linked in two places is listed in both. So directories that link to one
# another without a circle could multiply without end.
_MAX_LINKS = 4  # to folders, on the way to a clip
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class Entries(NamedTuple):
    """One folder without its hidden entries."""

    folders: list[str]  # names
    files: list[str]  # names of regular files
    odd: dict[str, str]  # name -> why it is neither


class LocalFolders:
    """The folders below a local directory.

    Paths are relative to it, with `/`; the empty path is the directory.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._links = {"": 0}  # folder -> how many links to folders lead to it

    def entries(self, folder: str) -> Entries:
        """What a folder holds; links are followed.

        Raises:
            OSError: if it cannot be listed.
        """
        entries = Entries([], [], {})
        with os.scandir(self._path(folder)) as children:
            for child in children:
                if child.name.startswith("."):
                    continue
                if problem := self._add(folder, child, entries):
                    entries.odd[child.name] = problem
        return entries

    def _add(self, folder: str, child: "os.DirEntry[str]", entries: Entries) -> str:
        """Add a child; returns why it cannot be used, empty if it can."""
        try:
            if child.is_dir():
                problem = self._enter(folder, child)
                if not problem:
                    entries.folders.append(child.name)
                return problem
            if child.is_file():
                entries.files.append(child.name)
                return ""
            mode = child.stat().st_mode
        except FileNotFoundError:
            return "a link to nowhere"
        except OSError as error:  # a link to itself, or into a locked folder
            return f"cannot be read: {error.strerror}"
        return SPECIAL + _KINDS.get(stat.S_IFMT(mode), "something else")

    def _enter(self, folder: str, child: "os.DirEntry[str]") -> str:
        is_link = child.is_symlink()
        path = posixpath.join(folder, child.name)
        self._links[path] = self._links[folder] + is_link
        if not is_link:
            return ""
        if self._links[path] > _MAX_LINKS:
            return f"more than {_MAX_LINKS} links to folders lead there"
        target = child.stat()
        above: str | None = folder
        while above is not None:
            if os.path.samestat(target, Path(self._path(above)).stat()):
                return CIRCLE
            above = posixpath.dirname(above) if above else None
        return ""

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def stamp(self, path: str) -> str:
        """A text that changes when a file does; empty where nothing tells."""
        return file_stamp(Path(self._path(path)))

    def files_below(self, folder: str) -> Iterator[str]:
        """The paths of all files below a folder, relative to it; links are not followed."""
        root = self._path(folder)
        for above, _, names in os.walk(root):
            yield from (f"{above}/{name}"[len(root) + 1 :] for name in names)


class RemoteFolders:
    """The folders of a bucket, made of the paths of its files; see `LocalFolders`."""

    def __init__(self, stamps: Stamps) -> None:
        self._stamps = stamps
        self._entries: dict[str, Entries] = {"": Entries([], [], {})}
        for path in stamps:
            *parents, name = path.split("/")
            if not all(part and not part.startswith(".") for part in (*parents, name)):
                continue
            folder = ""
            for parent in parents:
                child = posixpath.join(folder, parent)
                if child not in self._entries:
                    self._entries[child] = Entries([], [], {})
                    self._entries[folder].folders.append(parent)
                folder = child
            self._entries[folder].files.append(name)

    def entries(self, folder: str) -> Entries:
        return self._entries[folder]

    def stamp(self, path: str) -> str:
        return self._stamps[path]

    def files_below(self, folder: str) -> Iterator[str]:
        start = len(folder) + 1
        yield from (path[start:] for path in self._stamps if path.startswith(f"{folder}/"))


Folders = LocalFolders | RemoteFolders
