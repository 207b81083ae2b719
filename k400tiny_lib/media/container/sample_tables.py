"""How many samples an MP4 file says it has, before FFmpeg makes a table of them.

FFmpeg keeps 24 bytes per sample, which a file of 4 kB may claim to have billions of.
"""

import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from k400tiny_lib.media.container.expected_size import read_at

# The boxes that state a number of samples without data for each: its size before the name, its
# version and flags, and two numbers. FFmpeg takes them at any depth.
_TABLES = re.compile(rb"(.{4})(stsz|stz2|trun|cmov)(.{4})(.{4})(.{0,4})", re.DOTALL)
_TIMES = re.compile(rb"stts.{4}(.{4}).{4}(.{4})", re.DOTALL)
_ONE_TICK = (b"\0\0\0\1", b"\0\0\0\1")  # one entry, and how long its samples last
_MEDIA = b"mdat"
_SAMPLES_PER_BOX = 8
_NAME = re.compile(rb"[ -~\xa9]{4}")
_LARGEST_HEADER = 256 << 20  # bytes; such a file is refused for its size, where there are limits


def stated_samples(file: BinaryIO) -> float:
    """The samples of all tracks of an MP4 file together; 0 for another file, inf if compressed.

    A table of one size for all samples counts, as does a fragment; a table with an entry for each
    sample is as long as the file allows. A box at the top of the file counts as some, for it takes
    the time of some.
    """
    return sum(_SAMPLES_PER_BOX + _samples(header) for header in _headers(file))


def _headers(file: BinaryIO) -> Iterator[bytes]:
    """The content of the boxes at the top of a file, except the media."""
    size, position = file.seek(0, io.SEEK_END), 0
    while len(head := read_at(file, position, 16)) >= 8 and _NAME.fullmatch(head[4:8]):
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        end = position + length if length else size  # 0: up to the end
        if head[4:8] != _MEDIA:
            yield read_at(file, position, min(end - position, _LARGEST_HEADER))
        if length and end < position + 8:
            return
        position = end


def _samples(header: bytes) -> float:
    return sum(_samples_of_track(track) for track in header.split(b"trak"))


def _samples_of_track(track: bytes) -> float:
    # Uncompressed sound is no table: FFmpeg keeps blocks of it, if all samples last one tick.
    times = _TIMES.findall(track)
    is_sound = b"soun" in track and b"vide" not in track and times == [_ONE_TICK]
    count = 0
    for size, name, _, first, second in _TABLES.findall(track):
        # The same four letters by chance, within a table of numbers.
        if int.from_bytes(size, "big") > len(track):
            continue
        if name == b"cmov":  # the boxes themselves, compressed
            return float("inf")
        if name == b"trun" or not is_sound:
            count += int.from_bytes(first if name == b"trun" else second, "big")
    return count
