"""Check that clips can be used for training; a clip is read again only when its files change."""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from k400tiny_lib.console import progress
from k400tiny_lib.data.preparation.content_index import ContentIndex
from k400tiny_lib.files import bytes_digest, combine_digests, combine_named_digests, file_stamp
from k400tiny_lib.media.frames import is_frame, list_frames
from k400tiny_lib.system import available_cores

# One frame has no motion, and motion is what the classes are about.
MIN_FRAMES = 2
# 8K video has 33 megapixels. The header of a tiny file can claim gigapixels.
MAX_PIXELS = 64_000_000
MISSING = "no such folder"
_NO_FRAMES = "no frames (.jpg, .jpeg, .png)"
_SAVE_EVERY = 2000  # clips; a killed check repeats at most so many
_FORMATS = ("JPEG", "PNG")

_JPEG_START, _PNG_START = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
# A marker: not the 00 that follows a byte FF of a scan, nor a restart, nor a fill byte.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")
_SCAN, _END = b"\xda", b"\xd9"

# PIL warns above a limit that is higher than ours, and of a multi-picture file whose index it
# cannot read, which OpenCV does not need.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", message="Image appears to be a malformed MPO")


@dataclass(frozen=True, slots=True)
class ClipCheck:
    """The result of checking one clip.

    Attributes:
        digest: of the names and bytes of its frames, equal to `media.frames.clip_digest`.
        content_digest: of the bytes of its frames in order, without names: equal for copies.
        num_frames: number of frames.
        problem: why it cannot be used; empty for a good clip.
        left_out: how many pictures of its folder are no frames, by what they are.
        patterns: how its frames are named where that is not one pattern, and how many.
    """

    digest: str
    content_digest: str
    num_frames: int
    problem: str = ""
    left_out: dict[str, int] = field(default_factory=dict)
    patterns: dict[str, int] = field(default_factory=dict)


def check_clip(folder: Path) -> ClipCheck:
    """Read and decode every frame of a clip.

    A clip is bad if a frame is empty, incomplete, no JPEG or PNG, or larger than 64 megapixels, if
    its frames differ in size, or if it has fewer than two.
    """
    digests: dict[str, str] = {}
    problem = ""
    first_size: tuple[int, int] | None = None
    try:
        listed = list_frames(folder)
    except OSError as error:
        return ClipCheck("", "", 0, f"cannot be read: {error.strerror}")
    names = listed.frames
    for name in names:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            digests[name] = ""
            problem = problem or f"{name} cannot be read: {error.strerror}"
            continue
        digests[name] = bytes_digest(content)
        if problem:
            continue  # only the digest needs the remaining frames
        size, problem = check_frame(content)
        first_size = first_size or size
        if not problem and size != first_size:
            problem = f"is {_text(size)}, {names[0]} is {_text(first_size)}"
        if problem:
            problem = f"{name} {problem}"
    if not problem and len(names) < MIN_FRAMES:
        problem = f"{len(names)} frame(s), needed: {MIN_FRAMES}" if names else _NO_FRAMES
    content_digest = combine_digests(digests[name] for name in names)
    left_out, digest = dict(Counter(listed.left_out.values())), combine_named_digests(digests)
    return ClipCheck(digest, content_digest, len(names), problem, left_out, listed.patterns)


def check_frame(content: bytes) -> tuple[tuple[int, int] | None, str]:
    """Decode an image as strictly as its format allows.

    Returns:
        (height, width) or None, and what is wrong with it, empty for nothing.
    """
    if not content:
        return None, "is empty (0 bytes)"
    try:
        with Image.open(BytesIO(content), formats=_FORMATS) as header:  # reads no pixels
            width, height = header.size
    except Image.DecompressionBombError:
        return None, f"has more than {MAX_PIXELS // 10**6} megapixels"
    except (OSError, SyntaxError, ValueError):
        return None, "is no JPEG or PNG image"
    if width * height > MAX_PIXELS:
        return None, f"has more than {MAX_PIXELS // 10**6} megapixels ({width}x{height})"
    # OpenCV fills missing rows with gray and reports no error.
    is_png = content.startswith(_PNG_START)
    if not (content.rfind(b"IEND") > content.rfind(b"IDAT") if is_png else _jpeg_ends(content)):
        return None, "is truncated"
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        return None, "cannot be decoded"
    return (int(image.shape[0]), int(image.shape[1])), ""


def _jpeg_ends(content: bytes) -> bool:
    """Whether each picture of a JPEG has its end marker.

    Cameras append further pictures (the multi-picture format), and phones anything else.
    """
    while content.startswith(_JPEG_START):
        end = _end_of_jpeg(content)
        if end is None:
            return False
        content = content[end:].lstrip(b"\0")
    return True


def _end_of_jpeg(content: bytes) -> int | None:
    """The position behind the first picture of a JPEG; None if it is cut off."""
    position, has_scan = 2, False
    while marker := _MARKER.search(content, position):
        position = marker.end()
        if marker[1] == _END:
            return position if has_scan else None
        has_scan = has_scan or marker[1] == _SCAN
        # Segments begin with their length; a thumbnail within one has markers, too.
        position += int.from_bytes(content[position : position + 2])
    return None


def _text(size: tuple[int, int] | None) -> str:
    return f"{size[1]}x{size[0]}" if size else "unreadable"


def check_clips(root: Path, names: Iterable[str], index: ContentIndex) -> dict[str, ClipCheck]:
    """Check clips in parallel; those that have not changed since are taken from the index.

    Threads suffice: reading, hashing and decoding release the GIL.

    Args:
        root: the directory of the clip folders.
        names: their paths below it, without `..`.
        index: results of former runs; new ones are saved there.
    """
    known = index.load(str(root))
    checks: dict[str, ClipCheck] = {}
    pending: dict[str, str] = {}
    for name in names:
        signature = _signature(f"{root}/{name}")
        if signature is None:
            checks[name] = ClipCheck("", "", 0, MISSING)
        elif name in known and known[name][0] == signature:
            checks[name] = ClipCheck(*json.loads(known[name][1]))
        else:
            pending[name] = signature
    if not pending:
        return checks
    remaining = iter(pending.items())
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        progress(None, len(pending), "check") as bar,
    ):
        while batch := dict(islice(remaining, _SAVE_EVERY)):
            results = pool.map(check_clip, map(root.joinpath, batch))
            for name, check in zip(batch, results, strict=True):
                checks[name] = check
                bar.update()
            facts = (json.dumps(astuple(checks[name])) for name in batch)
            index.save(str(root), zip(batch, batch.values(), facts, strict=True))
    return checks


def digest_clips(root: Path, names: Iterable[str], index: ContentIndex) -> str:
    """One digest of the names and contents of clips; see `check_clips`."""
    checks = check_clips(root, names, index)
    return combine_named_digests({name: check.digest for name, check in checks.items()})


def _signature(folder: str) -> str | None:
    """Names, sizes, times and inodes of a clip's frames as a digest; None without a folder."""
    try:
        with os.scandir(folder) as entries:
            files = [(e.name, file_stamp(e)) for e in entries if is_frame(e.name)]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):  # a circular link, no permission, an impossible name
        return ""
    return bytes_digest(repr(sorted(files)).encode())
