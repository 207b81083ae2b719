"""What data *is*, apart from names of directories and times of files: its digest."""

import hashlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from k400tiny_lib.media.frames import frame_files, is_frame

_BLOCK = 1 << 20


def bytes_digest(content: bytes) -> str:
    """BLAKE2b of some bytes, 128 bits in hex."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """BLAKE2b of a file's bytes, 128 bits in hex; a video may be larger than the memory."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def combine(parts: Iterable[str]) -> str:
    """One digest of several texts in their order, 128 bits in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()


def combine_named(digests: Mapping[str, str]) -> str:
    """One digest of named contents, whatever their order."""
    return combine(text for name in sorted(digests) for text in (name, digests[name]))


def clip_digest(folder: Path) -> str:
    """Digest of the names and bytes of a clip's frames."""
    return combine_named({path.name: file_digest(path) for path in frame_files(folder)})


def data_digest(data_path: Path) -> str:
    """Digest of all clips below a directory: folder names, frame names, bytes.

    Clips lie in it or one folder deeper, as `class/clip`; without any bad clip the annotations of
    prepare_data have this digest.
    """
    folders = [path for path in data_path.glob("*") if _is_folder(path)]
    nested = [path for folder in folders for path in folder.glob("*") if _is_folder(path)]
    clips = {path.relative_to(data_path).as_posix(): path for path in [*folders, *nested]}
    clips = {name: path for name, path in clips.items() if _has_frames(path)}
    with ThreadPoolExecutor() as pool:  # hashing and reading release the GIL
        return combine_named(dict(zip(clips, pool.map(clip_digest, clips.values()), strict=True)))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _has_frames(folder: Path) -> bool:
    return any(is_frame(path.name) for path in folder.iterdir())
