"""Is a video file whole? FFmpeg plays half a download as half the video, without an error.

Most containers state their size or duration in the first bytes, or consist of blocks that state
theirs. A live recording states neither, and is taken as it is.
"""

import io
from collections import deque
from typing import BinaryIO

from k400tiny_lib.media.container.expected_size import (
    ENDS,
    MP4_BOXES,
    Facts,
    ebml_length,
    mp4_boxes,
    read_at,
)

_FEW = 8  # zeros that no compressed picture ends with
_FEWEST = 4  # the same for blocks of 188 bytes
_BLOCK = 1 << 20
_HOLE = bytes(128)
_EBML_VOID = 0xEC
_UNMEASURED = ("mpegvideo", "mpegts", "mpeg", "ogg")  # where blocks follow without a stated end


def find_truncation(file: BinaryIO, kind: str, facts: Facts) -> str:
    """How a file is incomplete, in a few words; empty if it is whole, as far as can be seen.

    Args:
        file: its content; can be sought.
        kind: FFmpeg's name of the container.
        facts: from demuxing.
    """
    size = file.seek(0, io.SEEK_END)
    zeros = _zeros_from(file, size)
    name = next((name for name in kind.split(",") if name in ENDS), "")
    measured = ENDS[name](file, size, zeros, facts) if name else None
    end = max(measured or 0, facts.index_end)
    if end > size or (facts.is_cut and name != "flv"):
        return _share(facts) or f"{size:,} of {max(end, size + 1):,} bytes are there"
    few = _FEW if name != "mpegts" else _FEWEST
    behind = zeros + few < end and facts.packets_end + few < end
    hollow = facts.is_empty or zeros + few < facts.video_end or behind
    # Raw streams may have some zeros between frames.
    hollow = hollow and kind != "mpegvideo" and not _is_padding(file, zeros, end)
    if hollow or (kind in _UNMEASURED and _ends_hollow(size, zeros)):
        return _share(facts) or "it ends in zeros"
    if not measured and name in ("flv", "matroska", "rm"):
        # Stated durations are a little off. A tail of zeros needs no other doubt.
        tolerance = max(0.1 * facts.stated, min(1.0, 0.25 * facts.stated))
        tolerance = 0.25 if zeros + _FEW < size else tolerance
        if facts.stated - facts.seconds > tolerance:
            return _share(facts)
    return ""


def has_hole(file: BinaryIO, start: int, stop: int) -> bool:
    """Whether a part of a file has a stretch of zeros, as where a download left something out."""
    file.seek(start)
    before = b""
    while start < stop and (block := file.read(min(_BLOCK, stop - start))):
        if _HOLE in before + block:
            return True
        before, start = block[-len(_HOLE) :], start + len(block)
    return False


def is_cut(file: BinaryIO) -> bool:
    """Whether a file that FFmpeg cannot open is shorter than its first blocks say."""
    size = file.seek(0, io.SEEK_END)
    zeros = _zeros_from(file, size)
    head, nothing = read_at(file, 0, 8), Facts(0, 0, 0, False, 0, False, 0.0, 0.0)
    if head[4:] in MP4_BOXES:
        names = {name for name, _ in mp4_boxes(file)}
        [(_, end)] = deque(mp4_boxes(file), maxlen=1)
        return end > zeros + _FEW or b"moov" not in names
    if _ends_hollow(size, zeros):
        return True
    name = {b"RIFF": "avi", b".RMF": "rm"}.get(head[:4], "matroska")
    return (ENDS[name](file, size, zeros, nothing) or 0) > zeros + _FEW


def _ends_hollow(size: int, zeros: int) -> bool:
    """Whether a file ends in more zeros than blocks are filled up with."""
    return zeros < size - max(1024, size // 20)


def _share(facts: Facts) -> str:
    if facts.stated - facts.seconds < 0.1:
        return ""
    return f"{facts.seconds:.1f} of {facts.stated:.1f} s are there"


def _zeros_from(file: BinaryIO, size: int) -> int:
    """Where the zeros at the end of a file begin."""
    end = size
    while end:
        start = max(0, end - _BLOCK)
        file.seek(start)
        kept = len(file.read(end - start).rstrip(b"\0"))
        if kept:
            return start + kept
        end = start
    return 0


def _is_padding(file: BinaryIO, zeros: int, end: int) -> bool:
    """Whether zeros are the content of a block that says that it is padding."""
    start = max(0, zeros - 12)
    file.seek(start)
    before = file.read(zeros - start + 8)
    if b"JUNK" in before or b"free" in before:
        return True
    for position in range(zeros - start):
        if before[position] == _EBML_VOID:
            length, after = ebml_length(before, position + 1)
            if length is not None and start + after + length == end:
                return True
    return False
