"""The video of a row of a request: bytes in base64, or a file below a directory."""

import base64
import binascii
from pathlib import Path

from k400tiny_lib.errors import UserError

_URL_SAFE = str.maketrans("-_", "+/")
_NEEDED = "the bytes of a video file in base64"


def decoded_video(content: str | bytes, max_megabytes: float) -> bytes:
    """The bytes of a video.

    Args:
        content: in base64 (the common or the URL-safe letters, with or without line breaks and
            padding, or as a `data:` URI), or as they are.
        max_megabytes: the largest file to accept.

    Raises:
        UserError: if it is larger, or no base64.
    """
    if isinstance(content, bytes):
        _check_size(len(content), max_megabytes)
        return content
    text = content
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise UserError(f"a data: URI without base64. Needed: {_NEEDED}.")
    _check_size(len(text) * 3 // 4, max_megabytes)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        pass
    plain = "".join(text.split()).translate(_URL_SAFE).rstrip("=")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        what = "an address, and not base64" if "://" in text[:20] else "not base64"
        raise UserError(f"{what}. Needed: {_NEEDED}.") from None


def path_below(root: str, name: str, max_megabytes: float) -> Path:
    """The file that a request names.

    Args:
        root: directory of the files; empty where none may be named.
        name: relative to it.
        max_megabytes: the largest file to accept.

    Raises:
        UserError: if it is not below the directory, or larger.
    """
    if not root:
        raise UserError(
            "paths are refused here. Needed: `video` (base64), or a `video_root` in the model's "
            "configuration."
        )
    if "://" in name[:20]:
        raise UserError(f"{name[:100]!r} is an address. Needed: a file below video_root.")
    # Links are resolved first, so that one that leads out of the directory is refused too. The
    # message is the same for every refused path: it does not tell which files exist.
    try:
        path = Path(root, name).resolve()
        allowed = path.is_relative_to(Path(root).resolve()) and path.is_file()
        size = path.stat().st_size if allowed else 0
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a null byte
        allowed = False
    if not allowed:
        raise UserError(f"there is no {name[:100]!r} below video_root.")
    _check_size(size, max_megabytes)
    return path


def _check_size(size: int, max_megabytes: float) -> None:
    if size > max_megabytes * 1e6:
        raise UserError(
            f"{size / 1e6:.1f} MB. Needed: at most {max_megabytes:g} MB (max_megabytes)."
        )
