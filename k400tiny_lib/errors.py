"""Errors for people: the exception type for a user's mistake, and any text as one line."""

import unicodedata
from collections.abc import Sequence


class UserError(Exception):
    """Something the user can repair: a parameter, a path, a file.

    The message is one line: the parameter, what was found, what is needed. A step prints it
    without a traceback and exits with code 2.
    """


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message, at most `limit` characters; its type where it is empty.

    Libraries raise messages of many lines, or none; a line of ours quotes the first.
    """
    lines = str(error).strip().splitlines()
    text = " ".join(lines[0].split()) if lines else type(error).__name__
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
