"""Local copies of remote files through fsspec, and remote copies of local ones.

A local path, or `file://`, is used directly. Anything else (`s3://`, `gs://`, `memory://`) gets a
local copy below `.k400tiny/remote`, because every epoch reads the frames again.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from k400tiny_lib.errors import UserError, one_line
from k400tiny_lib.files import Stamps, atomic_write, is_remote, local_path, writing_to

_MANIFEST = ".fetched.json"
_PROBE = ".k400tiny-writable"
_ASYNC_CALLS = 64  # at the same time, over the connections of one client
_CONNECTIONS = 16  # of a file system that is not asynchronous
_CHUNK = 1024  # files


def list_files(uri: str, parameter: str) -> dict[str, str]:
    """The stamps of the files below a remote directory, sorted by path.

    If the URI names a file, its only entry is the empty path.

    Raises:
        UserError: if it cannot be listed or nothing is there.
    """
    with _user_errors(uri, parameter):
        files, root = _connect(uri)
        files.invalidate_cache()
        infos: dict[str, dict[str, Any]] = files.find(root, detail=True)
    if not infos:
        raise UserError(f"{parameter}: {uri} {_why_nothing(files, root)}.")
    listing = sorted(infos.items())
    stamps = {path[len(root) :].lstrip("/"): _stamp(i) for path, i in listing if path[-1] != "/"}
    if _is_http(uri):  # a web page: its names are quoted, and it has links that sort it
        stamps = {unquote(n): stamp for n, stamp in stamps.items() if not set("?#") & set(n)}
    return {name: stamp for name, stamp in stamps.items() if ".." not in name.split("/")}


def _why_nothing(files: Any, root: str) -> str:
    # Over HTTP, what cannot be reached is an empty listing, and its reason the cause of this error.
    try:
        files.info(root)
    except Exception as error:
        if isinstance(error.__cause__, OSError):
            return f"cannot be reached: {one_line(error.__cause__)}"
    return "does not exist or is empty"


def fetch(uri: str, parameter: str, stamps: Stamps | None = None) -> Path:
    """Bring the local copy of a remote file or directory up to date.

    Files whose stamp has not changed since they were fetched are not fetched again. An interrupted
    fetch continues with the files that have not arrived yet.

    Args:
        uri: what to copy.
        parameter: the parameter that named it, for the message.
        stamps: from `list_files`, if the URI has been listed already.

    Returns:
        The local path; for a local `uri` that path, untouched and perhaps missing.

    Raises:
        UserError: if it cannot be fetched.
    """
    target = local_path(uri)
    if not is_remote(uri):
        return target
    stamps = list_files(uri, parameter) if stamps is None else stamps
    manifest = target.parent / _MANIFEST
    known = _read_manifest(manifest)
    logging = Lock()

    def get(files: Any, root: str, name: str) -> None:
        local = target / name
        local.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(local) as partial_path:
            files.get_file(remote_uri(root, name), str(partial_path))
        with logging:
            log.write(json.dumps({name: stamps[name]}) + "\n")

    changed = [
        name
        for name, stamp in stamps.items()
        if not stamp or known.get(name) != stamp or not (target / name).is_file()
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    with _user_errors(uri, parameter), manifest.open("a", buffering=1) as log:
        _run_concurrently(get, uri, changed)
    for name in known.keys() - stamps.keys():
        (target / name).unlink(missing_ok=True)
    with atomic_write(manifest) as partial_path:
        partial_path.write_text(json.dumps(dict(stamps)) + "\n")
    return target


def remote_uri(base: str, name: str) -> str:
    """The URI of a file that `list_files` names below a remote directory."""
    return f"{base}/{quote(name) if _is_http(base) else name}".rstrip("/")


def _is_http(uri: str) -> bool:
    return uri.lower().startswith(("http://", "https://"))


def fetch_file(uri: str, target: Path) -> None:
    """Copy one remote file; errors are those of the file system."""
    files, path = _connect(uri)
    files.get_file(path, str(target))


def upload(folder: Path, uri: str, parameter: str) -> None:
    """Copy a local directory, except hidden files, to a remote one.

    A file that exists there with the same size is not sent again: the directories that we upload
    are named after the settings that made their files, so these do not change.

    Raises:
        UserError: if it cannot be written.
    """

    def put(files: Any, root: str, name: str) -> None:
        files.put_file(str(folder / name), f"{root}/{name}")

    def make_directory(files: Any, root: str, name: str) -> None:
        files.makedirs(f"{root}/{name}".rstrip("/"), exist_ok=True)

    with _user_errors(uri, parameter):
        files, root = _connect(uri)
        files.invalidate_cache()
        remote = files.find(root, detail=True) if files.exists(root) else {}
        local = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
        changed = [
            name
            for name, path in local.items()
            if path.is_file() and not any(part.startswith(".") for part in name.split("/"))
            if remote.get(f"{root}/{name}", {}).get("size") != path.stat().st_size
        ]
        directories = sorted({name.rpartition("/")[0] for name in changed})
        _run_concurrently(make_directory, uri, directories)
        _run_concurrently(put, uri, changed)


def check_writable(uri: str, parameter: str) -> None:
    """Make a local or remote directory, and write a file into it to see that this is allowed.

    Raises:
        UserError: if it is not.
    """
    if is_remote(uri):
        with _user_errors(uri, parameter):
            files, root = _connect(uri)
            files.makedirs(root, exist_ok=True)
            files.pipe_file(f"{root}/{_PROBE}", b"")
            with suppress(Exception):  # who may write need not be allowed to delete
                files.rm_file(f"{root}/{_PROBE}")
        return
    folder = local_path(uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise UserError(
            f"{parameter}: {folder} cannot be written: {reason}. Needed: a directory to write to."
        ) from None


def write_files(sources: Mapping[str, Path], uri: str, parameter: str) -> None:
    """Copy files into a local or remote directory, replacing each as a whole.

    Args:
        sources: local files by their new name.
        uri: the directory.
        parameter: the parameter that named it, for the message.

    Raises:
        UserError: if they cannot be written.
    """
    if is_remote(uri):
        with _user_errors(uri, parameter):
            files, root = _connect(uri)
            files.makedirs(root, exist_ok=True)
            for name, source in sources.items():
                files.put_file(str(source), f"{root}/.{name}.part")
            for name in sources:
                files.mv(f"{root}/.{name}.part", f"{root}/{name}")
        return
    folder = local_path(uri)
    with writing_to(folder, parameter), ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        for name, source in sources.items():
            shutil.copyfile(source, stack.enter_context(atomic_write(folder / name)))


def _run_concurrently(work: Callable[[Any, str, str], None], uri: str, items: list[str]) -> None:
    """Call work(file system, root, item) in threads.

    `fs.get` and `fs.put` with lists of files do this too, but only for asynchronous file systems,
    and do not tell which files have arrived when one of them fails.
    """
    connecting = Lock()

    def call(item: str) -> None:
        # fsspec gives all threads one asynchronous client, and each thread its own of the others,
        # which need not be thread-safe. SSH servers refuse to connect many at the same time.
        with connecting:
            files, root = _connect(uri)
        work(files, root, item)

    connections = _ASYNC_CALLS if _connect(uri)[0].async_impl else _CONNECTIONS
    with ThreadPoolExecutor(connections) as pool:
        try:
            for start in range(0, len(items), _CHUNK):
                chunk = items[start : start + _CHUNK]
                for future in as_completed([pool.submit(call, item) for item in chunk]):
                    future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # else Ctrl-C waits for the whole chunk


def _read_manifest(path: Path) -> dict[str, str]:
    """Relative path -> stamp of the files that were fetched; a later line of JSON has priority."""
    stamps: dict[str, str] = {}
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):  # the last line of a fetch that was killed
            stamps |= json.loads(line)
    return stamps


def _stamp(info: dict[str, Any]) -> str:
    # Object stores identify the version in ETag or md5Hash, file systems the time.
    keys = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key) is not None)


def _connect(uri: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    files, root = fsspec.core.url_to_fs(uri)
    return files, root.rstrip("/")


@contextmanager
def _user_errors(uri: str, parameter: str) -> Iterator[None]:
    """Turn every error into a UserError: each file system has its own types."""
    try:
        yield
    except Exception as error:  # also an unknown protocol, or one whose package is missing
        raise UserError(f"{parameter}: {uri} cannot be used: {one_line(error)}") from None
