"""Local files: atomic writes, content digests, paths, and what is wrong with a disk.

`remote_files` has the local copies of remote files.
"""

import errno
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import unquote

from k400tiny_lib.errors import UserError, one_line

# Relative path -> a text that changes when the file does; empty where nothing tells.
Stamps = Mapping[str, str]

_blake2b = partial(hashlib.blake2b, digest_size=16)  # 128 bits

_COPIES = Path(".k400tiny", "remote")
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


def cannot_write(parameter: str, path: Path, error: Exception) -> UserError:
    """The error for a directory of the user in which nothing can be made or written.

    Args:
        parameter: that named it.
        path: what could not be written.
        error: of the attempt.
    """
    reason = getattr(error, "strerror", None) or one_line(error)
    return UserError(
        f"{parameter}: {path} cannot be written to: {reason}. Needed: a directory in which this "
        f"user can write, with room (-P {parameter}=...)."
    )


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


# Of the URIs that only MLflow can read.
ARTIFACT_SCHEMES = ("runs:/", "models:/", "mlflow-artifacts:/", "dbfs:/")


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
