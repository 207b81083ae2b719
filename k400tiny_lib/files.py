"""Files: atomic writes, content digests, and local copies of what lies on another machine.

A local path, or `file://`, is used where it is. Anything else (`s3://`, `gs://`, `memory://`) has a
local copy below `.k400tiny/remote`, because frames are read far too often to leave them far away.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import fsspec

from k400tiny_lib.errors import UserError, one_line

_blake2b = partial(hashlib.blake2b, digest_size=16)  # 128 bits

_COPIES = Path(".k400tiny", "remote")
_MANIFEST = ".fetched.json"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file as a whole: a crash leaves either the former content or the new one.

    Yields:
        A path in the same directory to write to. It becomes `path` at the end of the block, and is
        deleted where the block raises. The name does not change, so that a process killed while it
        writes leaves one partial file, not many: of several processes only one may write `path`.
    """
    partial_path = path.with_name(f".{path.name}.part")
    try:
        yield partial_path
        partial_path.replace(path)
    finally:
        partial_path.unlink(missing_ok=True)


def bytes_digest(content: bytes) -> str:
    """BLAKE2b of some bytes, 128 bits in hex."""
    return _blake2b(content).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits in hex; a video may be larger than the memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, _blake2b).hexdigest()


def combine_digests(parts: Iterable[str]) -> str:
    """One digest of several texts in their order, 128 bits in hex."""
    digest = _blake2b()
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def combine_named_digests(digests: Mapping[str, str]) -> str:
    """One digest of named contents, whatever their order."""
    return combine_digests(text for name in sorted(digests) for text in (name, digests[name]))


def is_remote(uri: str) -> bool:
    """Whether a text names something beyond the local file system."""
    return "://" in uri and not uri.startswith(("file://", "local://"))


def absolute(uri: str) -> str:
    """A local path made absolute; a remote URI as it is."""
    return uri.rstrip("/") if is_remote(uri) else str(local_path(uri))


def local_path(uri: str) -> Path:
    """The absolute local path: of the thing itself, or of the copy of something remote."""
    if is_remote(uri):
        digest = hashlib.blake2b(uri.rstrip("/").encode(), digest_size=4).hexdigest()
        return (_COPIES / digest / uri.rstrip("/").rpartition("/")[2]).absolute()
    return Path(uri.removeprefix("file://").removeprefix("local://")).absolute()


def list_files(uri: str, parameter: str) -> dict[str, str]:
    """The files below a remote directory.

    Returns:
        Relative path and a text that changes with the file, sorted by path; the file itself under
        the empty path where the URI names a file.

    Raises:
        UserError: if it cannot be listed or nothing is there.
    """
    files, root = _filesystem(uri, parameter)
    try:
        found: dict[str, dict[str, Any]] = files.find(root, detail=True)
    except Exception as error:  # every file system raises its own
        raise _failure(uri, parameter, error) from None
    if not found:
        raise UserError(f"{parameter}: {uri} does not exist or is empty.")
    prefix = root.rstrip("/")
    return {
        path[len(prefix) :].lstrip("/"): _stamp(info)
        for path, info in sorted(found.items())
        if not path.endswith("/")
    }


def fetch(uri: str, parameter: str) -> Path:
    """Bring the local copy of a remote file or directory up to date.

    Files whose size and time (or entity tag) are those of the last time are not fetched again.

    Returns:
        The local path; for a local `uri` that path, untouched and perhaps missing.

    Raises:
        UserError: if it cannot be fetched.
    """
    target = local_path(uri)
    if not is_remote(uri):
        return target
    files, root = _filesystem(uri, parameter)
    stamps = list_files(uri, parameter)
    manifest = target.parent / _MANIFEST
    known = json.loads(manifest.read_text()) if manifest.is_file() else {}
    for name, stamp in stamps.items():
        local = target / name if name else target
        if known.get(name) == stamp and local.is_file():
            continue
        local.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_write(local) as partial_path:
                files.get_file(f"{root.rstrip('/')}/{name}".rstrip("/"), str(partial_path))
        except Exception as error:
            raise _failure(uri, parameter, error) from None
    for name in known.keys() - stamps.keys():
        (target / name).unlink(missing_ok=True)
    manifest.write_text(json.dumps(stamps))
    return target


def fetch_file(uri: str, target: Path) -> None:
    """Copy one remote file; errors are those of the file system."""
    files, path = fsspec.core.url_to_fs(uri)
    files.get_file(path, str(target))


def upload(folder: Path, uri: str, parameter: str) -> None:
    """Copy a local directory, hidden files left out, to a remote one.

    A file that is there with the same size is not sent again: what we upload lies in directories
    named after their settings and does not change.

    Raises:
        UserError: if it cannot be written.
    """
    files, root = _filesystem(uri, parameter)
    try:
        found = files.find(root, detail=True) if files.exists(root) else {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if not path.is_file() or any(part.startswith(".") for part in name.parts):
                continue
            target = f"{root.rstrip('/')}/{name.as_posix()}"
            if found.get(target, {}).get("size") != path.stat().st_size:
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
                files.put_file(str(path), target)
    except Exception as error:
        raise _failure(uri, parameter, error) from None


def _stamp(info: dict[str, Any]) -> str:
    # Object stores name the version in ETag or md5Hash, file systems the time.
    keys = ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
    return " ".join(str(info[key]) for key in keys if info.get(key) is not None)


def _filesystem(uri: str, parameter: str) -> tuple[Any, str]:
    try:
        files, root = fsspec.core.url_to_fs(uri)
    except Exception as error:  # an unknown protocol, or one whose package is missing
        raise _failure(uri, parameter, error) from None
    files.invalidate_cache()
    return files, root


def _failure(uri: str, parameter: str, error: Exception) -> UserError:
    return UserError(f"{parameter}: {uri} cannot be used: {one_line(error)}")
