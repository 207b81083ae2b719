"""Errors for people: the exception type for a user's mistake, and any text as one line."""

import re
import unicodedata
from collections.abc import Sequence

# Of a URI: all up to the last @ before the path. A database's password may also hold a slash.
_USER_INFO = re.compile(
    r"(?i)((?:postgres\w*|mysql|mariadb|mssql|oracle)(?:\+\w+)?://)[^\s:/@]*:[^\s@]*@"
    r"|\b([a-z][a-z0-9+.-]*://)[^\s/?#]*@"
)
_SECRET = re.compile(
    r"(?i)([?&](?:password|passwd|pwd|secret|token|access_token|sig|X-Amz-Signature"
    r"|X-Amz-Credential|X-Amz-Security-Token)=)[^&\s\"']+"
)


class UserError(Exception):
    """Something the user can repair: a parameter, a path, a file.

    The message is one line: the parameter, what was found, what is needed. A step prints it
    without a traceback and exits with code 2. It shows no password of a URI.

    Attributes:
        in_short: what the step prints instead, where a step within it has printed the message.
    """

    def __init__(self, message: str = "", in_short: str = "") -> None:
        super().__init__(message)
        self.in_short = in_short

    def __str__(self) -> str:
        return hide_passwords(super().__str__())


def hide_passwords(text: str) -> str:
    """A text without the user, password and other secrets of the URIs in it.

    For everything that is shown or stored: `http://user:secret@host/path` becomes
    `http://host/path`.
    """
    text = _USER_INFO.sub(lambda match: match[1] or match[2], text)
    return _SECRET.sub(r"\1***", text)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters; its type where it is empty.

    Libraries raise messages of many lines, or none; a line of ours quotes the first, without the
    period at its end.
    """
    lines = hide_passwords(str(error)).strip().splitlines()
    text = " ".join(lines[0].split()).rstrip(".") if lines else type(error).__name__
    return text if len(text) <= limit else f"{text[:limit]}..."


def listed(items: Sequence[str], limit: int, separator: str = ", ") -> str:
    """The first `limit` items as one text, and how many more there are."""
    more = len(items) - limit
    return separator.join(items[:limit]) + (f" and {more} more" if more > 0 else "")


def is_utf8(name: str) -> bool:
    """Whether the name of a file is text; other bytes are surrogates in it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(text: str) -> str:
    """A name or a message as one line that every terminal and file takes.

    Line breaks, control characters and bytes that are not UTF-8 are escaped (`caf\\xe9.mp4`).
    """
    return "".join(map(_escape, text))


def _escape(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":  # how Python holds a byte that is not UTF-8
        return f"\\x{ord(letter) - 0xDC00:02x}"
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return letter.encode("unicode_escape").decode()
    return letter
