"""What data *is*, apart from names of directories and times of files: its digest."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from k400tiny_lib.data.sources import FRAME_SUFFIXES


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits in hex."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def combine(parts: Iterable[str]) -> str:
    """One digest of several texts in their order, 128 bits in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def clip_digest(folder: Path) -> str:
    """Digest of the names and bytes of a clip's frames."""
    frames = sorted(p for p in folder.iterdir() if p.suffix.lower() in FRAME_SUFFIXES)
    return combine(text for path in frames for text in (path.name, file_digest(path)))


def data_digest(data_path: Path) -> str:
    """Digest of all clips below a directory: folder names, frame names, bytes."""
    folders = sorted(p for p in data_path.iterdir() if p.is_dir() and not p.name.startswith("."))
    with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
        digests = list(pool.map(clip_digest, folders))
    return combine(
        text for path, digest in zip(folders, digests, strict=True) for text in (path.name, digest)
    )
