"""The files that `predict` leaves, written row by row: what is there survives a crash."""

import csv
import re
from pathlib import Path
from typing import IO, Any

# What spreadsheets take for the beginning of a formula, with the wide forms of Asian keyboards.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_NUMBER = re.compile(r"[+-]?\d+([.,]\d+)?%?")


def input_cell(name: str) -> str:
    """The name of an input for a table: `./=1.mp4`, the same file, is no formula."""
    return f"./{name}" if name.startswith(_FORMULA) else name


def label_cell(label: str) -> str:
    """A label for a table, with an apostrophe in front if it would be a formula."""
    is_formula = label.startswith(_FORMULA) and not _NUMBER.fullmatch(label)
    return f"'{label}" if is_formula else label


class GrowingFile:
    """A text file that begins with its first line and is on disk after each; a context manager.

    Args:
        path: of the file.
        columns: of a table, for its first line; none for plain lines.
    """

    def __init__(self, path: Path, *columns: str) -> None:
        self._path, self._columns = path, columns
        self._file: IO[str] | None = None
        self._first = 0  # where the first row begins

    def __enter__(self) -> "GrowingFile":
        return self

    def __exit__(self, *error: object) -> None:
        if self._file:
            self._file.close()

    def write_rows(self, rows: list[tuple[Any, ...]]) -> None:
        """Append rows of a table."""
        if rows:
            csv.writer(self._open(), lineterminator="\n").writerows(rows)
            self._open().flush()

    def write_line(self, line: str) -> None:
        """Append a line of text."""
        self._open().write(f"{line}\n")
        self._open().flush()

    def size(self) -> int:
        """Where the next row begins."""
        return self._file.tell() if self._file else 0

    def cut(self, size: int) -> None:
        """Take back what was written since `size` told this number."""
        if self._file:
            self._file.seek(size or self._first)
            self._file.truncate()

    def _open(self) -> IO[str]:
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8", newline="")
            if self._columns:
                csv.writer(self._file, lineterminator="\n").writerow(self._columns)
            self._first = self._file.tell()
        return self._file
