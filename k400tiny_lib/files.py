"""Files: atomic writes, content digests, and local copies of remote files through fsspec.

A local path, or `file://`, is used directly. Anything else (`s3://`, `gs://`, `memory://`) gets a
local copy below `.k400tiny/remote`, because every epoch reads the frames again.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from k400tiny_lib.errors import UserError, one_line

# Relative path -> a text that changes when the file does; empty where nothing tells.
Stamps = Mapping[str, str]

_blake2b = partial(hashlib.blake2b, digest_size=16)  # 128 bits

_COPIES = Path(".k400tiny", "remote")
_MANIFEST = ".fetched.json"
_ASYNC_CALLS = 64  # at the same time, over the connections of one client
_CONNECTIONS = 16  # of a file system that is not asynchronous
_CHUNK = 1024  # files
_FILE_SCHEME = re.compile(r"(?:file|local)://(?:localhost(?=/))?", re.IGNORECASE)
_LONGEST_NAME = 240  # bytes; file systems allow 255, and partial files add a few
_NOT_WRITABLE = ("ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file as a whole: a crash leaves either the former content or the new one.

    Yields:
        A path in the same directory to write to. It becomes `path` at the end of the block, and is
        deleted where the block raises. The name does not change, so that a process killed while it
        writes leaves one partial file, not many: of several processes only one may write `path`.
    """
    name = path.name
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = bytes_digest(os.fsencode(name))
    partial_path = path.with_name(f".{name}.part")
    try:
        yield partial_path
        partial_path.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # of a write
            error.filename = str(path)
        raise
    finally:
        partial_path.unlink(missing_ok=True)


def disk_problem(error: BaseException, folder: Path) -> str:
    """What keeps a local file from being written (a full disk, no permission); "" for other errors.

    Args:
        error: of the attempt.
        folder: to name where the system does not tell the file.
    """
    if not isinstance(error, OSError) or errno.errorcode.get(error.errno or 0) not in _NOT_WRITABLE:
        return ""
    return f"{error.filename or folder} cannot be written: {error.strerror}"


@contextmanager
def writing_to(folder: Path, parameter: str) -> Iterator[None]:
    """Raise a UserError for what keeps the files of a folder from being written.

    Args:
        folder: to write to.
        parameter: the parameter that named it, for the message.
    """
    try:
        yield
    except OSError as error:
        if problem := disk_problem(error, folder):
            raise UserError(
                f"{parameter}: {problem}. Needed: room and permission there; what was written "
                "before is kept."
            ) from None
        raise


def bytes_digest(content: bytes) -> str:
    """BLAKE2b of some bytes, 128 bits in hex."""
    return _blake2b(content).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits in hex; reads it in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def combine_digests(parts: Iterable[str]) -> str:
    """One digest of several texts in their order, 128 bits in hex."""
    digest = _blake2b()
    for part in parts:  # the name of a file need not be UTF-8
        digest.update(part.encode(errors="surrogatepass") + b"\0")
    return digest.hexdigest()


def combine_named_digests(digests: Mapping[str, str]) -> str:
    """One digest of named contents, whatever their order."""
    return combine_digests(text for name in sorted(digests) for text in (name, digests[name]))


def is_remote(uri: str) -> bool:
    """Whether a path or URI is not on the local file system."""
    return "://" in uri and not _FILE_SCHEME.match(uri)


def expand(uri: str) -> str:
    """A local path with its `~` expanded, or of a `file://` URI; anything else as it is."""
    if scheme := _FILE_SCHEME.match(uri):
        return unquote(uri[scheme.end() :], errors="surrogateescape")
    # A `~name` that is no user is the name of a file.
    return uri if is_remote(uri) else os.path.expanduser(uri)  # noqa: PTH111 (it raises there)


def absolute(uri: str) -> str:
    """A local path made absolute; a remote URI as it is."""
    return uri.rstrip("/") if is_remote(uri) else str(local_path(uri))


def local_path(uri: str) -> Path:
    """The absolute path of a local file or directory, or of the local copy of a remote one."""
    if is_remote(uri):
        digest = hashlib.blake2b(uri.rstrip("/").encode(), digest_size=4).hexdigest()
        return (_COPIES / digest / uri.rstrip("/").rpartition("/")[2]).absolute()
    return Path(expand(uri)).absolute()


def problem_of(path: Path) -> str:
    """Why nothing can be read at a path, empty where something is there."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return "does not exist"
    except (OSError, ValueError) as error:  # no permission, a circle of links, an impossible name
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    return ""


def file_stamp(file: "Path | os.DirEntry[str]") -> str:
    """Size, time and inode of a local file; empty for a link to nowhere."""
    try:
        stat = file.stat()
    except OSError:
        return ""
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}"


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
        raise UserError(f"{parameter}: {uri} does not exist or is empty.")
    listing = sorted(infos.items())
    stamps = {path[len(root) :].lstrip("/"): _stamp(i) for path, i in listing if path[-1] != "/"}
    if _is_http(uri):  # a web page: its names are quoted, and it has links that sort it
        stamps = {unquote(n): stamp for n, stamp in stamps.items() if not set("?#") & set(n)}
    return {name: stamp for name, stamp in stamps.items() if ".." not in name.split("/")}


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
