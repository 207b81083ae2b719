"""Kinds of damage to the third frame of a clip of `write_clip`, and what is said about each."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np


def huge_png() -> bytes:
    """A whole PNG of 70 bytes that claims 40000 x 40000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks)


def huge_jpeg() -> bytes:
    """A JPEG of 40 x 48 pixels whose header claims 9000 x 9000."""
    content = cv2.imencode(".jpg", np.zeros((40, 48, 3), np.uint8))[1].tobytes()
    at = content.index(b"\xff\xc0") + 5  # marker, length, precision, then height and width
    return content[:at] + struct.pack(">HH", 9000, 9000) + content[at + 4 :]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def resize(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((32, 32, 3), np.uint8))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "frame02.jpg is empty"),
    "truncated": (cut, "frame02.jpg is truncated"),
    "text": (lambda path: path.write_text("not found"), "frame02.jpg is no JPEG or PNG"),
    "other size": (resize, "frame02.jpg is 32x32, frame00.jpg is 48x40"),
    "png bomb": (lambda path: path.write_bytes(huge_png()), "frame02.jpg has more than 64 mega"),
    "jpeg bomb": (lambda path: path.write_bytes(huge_jpeg()), "frame02.jpg has more than 64 mega"),
    "one frame": (lambda path: [p.unlink() for p in path.parent.glob("*[1-9].jpg")], "1 frame"),
    "no frames": (lambda path: [p.unlink() for p in path.parent.iterdir()], "no frames"),
    "dangling": (lambda path: (path.unlink(), path.symlink_to("gone")), "frame02.jpg cannot be"),
}
