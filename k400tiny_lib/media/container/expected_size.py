"""The size that a video file should have, by its first bytes or by its blocks."""

import io
from collections import deque
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 1 << 20
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_MXF_HEADER = bytes.fromhex("060e2b34020501010d0102010102")
_SEGMENT, _CLUSTER = bytes.fromhex("18538067"), bytes.fromhex("1f43b675")  # of Matroska
_RM_BLOCKS = (b".RMF", b"PROP", b"CONT", b"MDPR", b"DATA", b"INDX", b"RJMD", b"RMJE")
_FLV_TAGS = (b"\x08", b"\x09", b"\x12")
_LIVE_SIZES = (0, 0x7FFFFFFF, 0xFFFFFFFF)  # what recorders write before they know better
MP4_BOXES = (
    *(b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"free", b"skip", b"wide"),
    *(b"uuid", b"pnot", b"meta", b"udta"),
)


class Facts(NamedTuple):
    """What demuxing a file has shown.

    Attributes:
        index_end: byte after the last packet that the container's index names.
        last_start: first byte of the last packet.
        packets_end: byte after it.
        is_cut: whether the last packet is shorter than it should be.
        video_end: byte after the last packet of a video whose packets never end in zeros.
        is_empty: whether the last packet, of a compressed stream, consists of zeros.
        seconds: from the start to the end of the last packet of any stream.
        stated: the same as the header has it; 0 if it does not say.
    """

    index_end: int
    last_start: int
    packets_end: int
    is_cut: bool
    video_end: int
    is_empty: bool
    seconds: float
    stated: float


def read_at(file: BinaryIO, position: int, count: int) -> bytes:
    """The bytes from a position on, at most `count`."""
    try:
        file.seek(position)
    except (OSError, OverflowError):  # no file is so large
        return b""
    return file.read(count)


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _avi_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    end = 0
    while (head := read_at(file, end, 8))[:4] == b"RIFF":
        length = _little(head[4:])
        if length in _LIVE_SIZES:
            return None
        end += 8 + length
    return end


def mp4_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The name and the end of each box."""
    end = 0
    while len(head := read_at(file, end, 16)) >= 8 and head[4:8] in MP4_BOXES:
        length = _big(head[8:]) if head[:4] == b"\0\0\0\1" else _big(head[:4])
        end = end + length if length >= 8 else file.seek(0, io.SEEK_END)  # 0: up to the end
        yield head[4:8], end


def _mp4_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last box, unless it holds media.

    The index tells about the media, which may have bytes at their end that nothing needs.
    """
    [(name, end)] = deque(mp4_boxes(file), maxlen=1) or [(b"", 0)]  # there may be millions
    if end < size and b"moof" in read_at(file, end, 4 * _BLOCK):  # what FFmpeg does not find
        return size + 1
    return end if name != b"mdat" else None


def ebml_length(data: bytes, position: int) -> tuple[int | None, int]:
    """An EBML length and the position after it; None for an unknown one."""
    first = data[position] if position < len(data) else 0
    width = 9 - first.bit_length()
    if width > 8 or position + width > len(data):
        return None, position
    value = _big(data[position : position + width]) & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 else value), position + width


def _matroska_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    head = read_at(file, 0, 4096)
    length, position = ebml_length(head, 4)  # after the four bytes that name the header
    segment = position + (length or 0)
    if head[segment : segment + 4] != _SEGMENT:
        return None
    length, position = ebml_length(head, segment + 4)
    if length:
        return position + length
    # A live recording. Its last packet is followed by a part of another one if it is cut.
    ends, block, start = [0], facts.packets_end + 4, max(0, zeros - 4 * _BLOCK)
    if (rest := read_at(file, block, 12))[:1] == b"\xa3":
        length, after = ebml_length(rest, 1)
        ends.append(block + after + length if length else 0)
    tail = read_at(file, start, zeros - start)
    if (cluster := tail.rfind(_CLUSTER)) >= 0:
        length, after = ebml_length(tail, cluster + 4)
        ends.append(start + after + length if length else 0)
    return end if (end := max(ends)) > zeros else None


def _asf_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The stated end, or that of the content of the last data packet, which zeros fill up."""
    head = read_at(file, 0, 1 << 18)
    position, data = head.find(_ASF_PROPERTIES), head.find(_ASF_DATA)
    fields = head[position + 24 : position + 24 + 76]
    if position < 0 or data < 0 or len(fields) < 76 or fields[64] & 1:  # a broadcast
        return None
    if (stated := _little(fields[16:24])) > size:
        return stated
    count, length = _little(fields[32:40]), _little(fields[72:76])
    start = data + 50 + (count - 1) * length
    if not count or start + length > size:
        return None
    packet = read_at(file, start, 32)
    at = 1 + (packet[0] & 0x0F) if packet[0] & 0x80 else 0  # after the error correction
    sizes = [(packet[at] >> bits) & 3 for bits in (5, 1, 3)]  # of length, sequence, padding
    widths = [(0, 1, 2, 4)[value] for value in sizes]
    at += 2 + widths[0] + widths[1]
    return start + length - _little(packet[at : at + widths[2]])


def _flv_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last tag; no duration needs to be asked where a part of another follows."""
    head = read_at(file, facts.last_start, 11)
    if head[:1] not in _FLV_TAGS or any(head[8:]):  # something else that follows the tags
        return None
    end = facts.last_start + 11 + _big(head[1:4]) + 4  # a header, and the size once more
    rest = read_at(file, end, 12)
    # The size at its end is no zero, its last byte may be.
    if end > size or zeros + 2 < end or (rest[:1] in _FLV_TAGS and len(rest) < 11):
        return max(end, size + 1)
    return None


def _ts_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last packet: 188 bytes that begin with 0x47, after a time in AVCHD."""
    head = read_at(file, 0, 8 * 192)
    for step, first in ((188, 0), (192, 4), (204, 0)):
        marks = head[first::step]
        if set(marks) == {0x47}:
            tail = first + (zeros - first) // step * step
            while tail > first and read_at(file, tail, 1) != b"\x47":
                tail -= step
            return tail + step - first
    return None


def _ps_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last packet, found from the last pack on."""
    start = max(0, zeros - 2 * _BLOCK)
    tail = read_at(file, start, zeros - start)
    position = tail.rfind(b"\0\0\1\xba")
    if position < 0:
        return None
    following = tail.find(b"\0\0\1", position + 4)
    while 0 <= following < len(tail) - 6 and tail[following : following + 3] == b"\0\0\1":
        if tail[following + 3] < 0xBB:  # not a packet
            break
        following += 6 + _big(tail[following + 4 : following + 6])
    return start + following if following > 0 else None


def _ogg_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    start = max(0, zeros - 2 * 65_307)  # the longest page
    tail = read_at(file, start, min(size - start, 4 * 65_307))
    position = tail.rfind(b"OggS\0")
    if position < 0 or position + 27 > len(tail):
        return size + 1
    count = tail[position + 26]
    table = tail[position + 27 : position + 27 + count]
    return start + position + 27 + count + sum(table) if len(table) == count else size + 1


def _gif_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last block; beyond the file if one is cut."""
    data = read_at(file, 0, size)

    def after_table(flags: int, position: int) -> int:
        return position + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)

    try:
        position = after_table(data[10], 13)
        while data[position] in b"\x21\x2c":
            if data[position] == 0x2C:  # an image: its table of colors, and one byte
                position = after_table(data[position + 9], position + 10) + 1
            else:
                position += 2
            while length := data[position]:
                position += 1 + length
            position += 1
    except IndexError:
        return size + 1 if position > size or data[-1:] != b"\0" else None
    return position if data[position] else size + 1  # zeros in place of a block


def _mxf_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """Where the last partition begins."""
    head = read_at(file, 0, 1 << 16)
    position = head.find(_MXF_HEADER)
    if position < 0:
        return None
    length = head[position + 16]
    fields = position + 17 + (length & 0x7F if length & 0x80 else 0)
    footer = _big(head[fields + 24 : fields + 32])
    if footer and read_at(file, footer, 4) != _MXF_HEADER[:4]:
        return max(size, footer) + 1
    return None


def _rm_end(file: BinaryIO, size: int, zeros: int, facts: Facts) -> int | None:
    """The end of the last block; each states its length, to which FFmpeg adds ten bytes."""
    end = 0
    while (head := read_at(file, end, 8))[:4] in _RM_BLOCKS:
        end += max(8, _big(head[4:]))
    return max(0, end - 10)


# FFmpeg's name of a container -> where the file, given its size, the start of the zeros at its end
# and the facts, should end; None where the container does not say.
ENDS: dict[str, Callable[[BinaryIO, int, int, Facts], int | None]] = {
    "avi": _avi_end,
    "mov": _mp4_end,
    "matroska": _matroska_end,
    "asf": _asf_end,
    "flv": _flv_end,
    "mpegts": _ts_end,
    "mpeg": _ps_end,
    "ogg": _ogg_end,
    "gif": _gif_end,
    "mxf": _mxf_end,
    "rm": _rm_end,
}
