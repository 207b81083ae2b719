"""Any table of labels that people have, as text columns with the names that the sources know.

The separator, the encoding, the header's spelling and its usual synonyms are found out here. What
cannot be understood is one line with the header, the first bad line and its number.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pandas as pd

from k400tiny_lib.data.tables import lists
from k400tiny_lib.data.tables.columns import add_known_columns, known_columns, names_clips
from k400tiny_lib.errors import UserError, is_utf8, one_line, printable
from k400tiny_lib.files import problem_of
from k400tiny_lib.remote_files import fetch

_NEEDED = "a CSV with one row per clip"
_SEPARATORS = (",", ";", "\t", "|", " ")
_SEPARATOR_LINE = re.compile(r"sep=(.)\s*", re.IGNORECASE)  # Excel's first line
_SAMPLE = 200  # lines that decide about the separator
_SHOWN = 60  # characters of a line in a message
_BINARY = {
    b"PK\x03\x04": "an Excel workbook or another ZIP file",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"PAR1": "a Parquet file",
}


csv.field_size_limit(2**31 - 1)  # cells may hold long JSON; by default 128 KiB


class _Line(NamedTuple):
    number: int  # of its first physical line in the file, from 1
    fields: list[str]


@dataclass(frozen=True)
class Table:
    """The rows of a ground truth.

    Attributes:
        rows: text columns, as the file names them, and those that the sources know (see
            `columns.add_known_columns`); never empty.
        header: the names in the file.
        notes: remarks for the user, one line each.
        first_line: number and text of the first row, for messages; "" for JSON.
    """

    rows: pd.DataFrame
    header: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_line: str = ""


def read_table(gt_csv: str, needed: str = _NEEDED) -> Table:
    """Read a table, local or remote: CSV in any dialect, a list `path label`, or JSON records.

    Args:
        gt_csv: path or URI.
        needed: what it should be, for the messages.

    Raises:
        UserError: if it is missing, no table, or has no rows.
    """
    path = fetch(gt_csv, "gt_csv")
    notes: list[str] = []
    text = _decode(path, _read(path, needed), needed, notes)
    is_json = text.lstrip().startswith(("[", "{"))
    rows, first_line = (_read_json(path, text), "") if is_json else _read_lines(path, text, notes)
    if rows.empty:
        raise UserError(f"gt_csv: {path} has no rows. Needed: one row per clip.")
    known, more = add_known_columns(rows, path.name)
    return Table(known, list(rows.columns), [*notes, *more], first_line)


def _read(path: Path, needed: str) -> bytes:
    problem = problem_of(path)
    if not problem and not path.is_file():
        problem = "is a directory" if path.is_dir() else "is no regular file"
    if problem:
        raise UserError(f"gt_csv: {path} {problem}. Needed: {needed}.")
    try:
        with fsspec.open(str(path), "rb", compression="infer") as file:  # also .gz, .zip, .xz
            content: bytes = file.read()
    except Exception as error:  # each compression has its own errors
        raise UserError(f"gt_csv: {path} cannot be read: {one_line(error)}.") from None
    if not content.strip():
        raise UserError(f"gt_csv: {path} has no rows, it is empty. Needed: {needed}.")
    return content


def _decode(path: Path, content: bytes, needed: str, notes: list[str]) -> str:
    """The text in its encoding, with line ends as \\n; a note says which if it is not UTF-8."""
    for start, kind in _BINARY.items():
        if content.startswith(start):
            raise UserError(f"gt_csv: {path} is {kind}. Needed: save it as CSV (UTF-8).")
    content = content.removeprefix(b"\xef\xbb\xbf")
    encodings = ["utf-8", "cp1252", "latin-1"]
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:4000]:  # UTF-16 without a mark has a zero in each letter
        encodings = ["utf-16-le" if content[1:2] == b"\0" else "utf-16-be"]
    for encoding in encodings:
        try:
            text = content.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise UserError(f"gt_csv: {path} is not {encodings[0].upper()}. Needed: CSV in UTF-8.")
    if any(letter < " " and letter not in "\t\n\r\f\v\x1a\x1c\x1d\x1e\x1f" for letter in set(text)):
        raise UserError(f"gt_csv: {path} is no text but binary data. Needed: {needed}.")
    if encoding != "utf-8":
        notes.append(
            f"gt_csv: {path.name} is not UTF-8 and was read as {encoding}. If labels look wrong, "
            "save it as UTF-8."
        )
    return text.replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a")


def _read_json(path: Path, text: str) -> pd.DataFrame:
    """Records: a list of objects, or one object per line."""
    try:
        try:
            records = json.loads(text, parse_int=str, parse_float=str)
        except json.JSONDecodeError:
            lines = [line for line in text.split("\n") if line.strip()]
            records = [json.loads(line, parse_int=str, parse_float=str) for line in lines]
    except (ValueError, RecursionError) as error:
        raise UserError(f"gt_csv: {path} is no JSON: {one_line(error)}.") from None
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        problem = "no list of objects"
        if isinstance(records, dict):  # for example that of ActivityNet
            problem = f"a single object with the keys {_show(', '.join(records))}"
        raise UserError(
            f"gt_csv: {path} is JSON, but {problem}. Needed: a list with one object per clip, with "
            "its file and label. The nested JSON of ActivityNet and Kinetics is not read."
        )
    rows = [{_json_text(k): _json_text(v) for k, v in record.items()} for record in records]
    return pd.DataFrame(rows, dtype=object).fillna("")


def _json_text(value: Any) -> str:
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if is_utf8(text) else printable(text)  # half of a surrogate pair


def _read_lines(path: Path, text: str, notes: list[str]) -> tuple[pd.DataFrame, str]:
    """The table, and number and text of its first row."""
    separators: Sequence[str] = _SEPARATORS
    lines = text.split("\n")
    first = 0
    if match := _SEPARATOR_LINE.fullmatch(lines[0]):
        separators, first = (match[1],), 1
    comments = 0
    while first < len(lines) and (not lines[first].strip() or _is_comment(lines[first])):
        comments += bool(lines[first].strip())
        first += 1
    if first == len(lines):
        raise UserError(f"gt_csv: {path} has no rows. Needed: one row per clip.")
    head, separator = _choose(lines[first : first + _SAMPLE], separators)
    body = _split(path, lines, first, separator)
    has_header = not head
    if has_header:
        head, body = body[0].fields, body[1:]
    kept = [line for line in body if not _is_comment_row(line, len(head))]
    comments += len(body) - len(kept)
    if comments:
        notes.append(f"gt_csv: {comments} line(s) of {path.name} that begin with # are comments")
    first_line = f"line {kept[0].number}: {_show(lines[kept[0].number - 1])}" if kept else ""
    table = _frame(path, head, kept)
    return (table if has_header else lists.add_labels(path, table, notes)), first_line


def _is_comment(line: str) -> bool:
    """Whether a line above the rows is a comment, and not a header such as `#label,file`."""
    return line.startswith("#") and not any(names_clips(_cut(line, s)) for s in _SEPARATORS)


def _is_comment_row(line: _Line, num_columns: int) -> bool:
    """Whether a row is a comment: `# ...`, or # and another number of fields than the header."""
    first = line.fields[0]
    return first.startswith("# ") or (first.startswith("#") and len(line.fields) != num_columns)


def _cut(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def _choose(lines: list[str], separators: Sequence[str]) -> tuple[list[str], str]:
    """The columns of a file without a header (none: it has one), and the separator.

    csv.Sniffer takes letters for separators; the names of the columns, or those of the videos,
    decide more safely.
    """
    header = {separator: _cut(lines[0], separator) for separator in separators}
    usable = [s for s in separators if names_clips(header[s])]
    if usable:
        return [], max(usable, key=lambda s: len(header[s]) if s != " " else 0)
    filled = [line for line in lines if line.strip()]
    for separator in separators:
        if columns := lists.columns_of([_fields(line, separator) for line in filled]):
            return columns, separator
    visible = [s for s in separators if s != " "] or list(separators)
    return [], max(visible, key=lambda s: len(header[s]))


def _fields(line: str, separator: str) -> list[str]:
    """The fields of one line of a list."""
    if separator != " ":
        return _cut(line, separator)
    return lists.split_at_spaces(line) or _cut(" ".join(line.split()), separator)


def _split(path: Path, lines: list[str], first: int, separator: str) -> list[_Line]:
    """The rows with at least one filled field, and the lines that they begin in."""
    if separator == " ":
        rows = [_Line(n + 1, _fields(lines[n], " ")) for n in range(first, len(lines))]
        return [row for row in rows if any(value.strip() for value in row.fields)]
    reader = csv.reader(
        io.StringIO("\n".join(lines[first:]), newline=""),
        delimiter=separator,
        skipinitialspace=True,
    )
    rows, begin = [], first
    for fields in reader:
        rows.append(_Line(begin + 1, fields))
        begin = first + reader.line_num
    last = rows[-1]
    if begin > last.number and "".join(lines[last.number - 1 : begin]).count('"') % 2:
        raise UserError(
            f'gt_csv: line {last.number} of {path.name} opens a quote (") that no line closes: '
            f"{_show(lines[last.number - 1])}. Needed: an even number of quotes in each row."
        )
    return [row for row in rows if any(value.strip() for value in row.fields)]


def _frame(path: Path, head: list[str], rows: list[_Line]) -> pd.DataFrame:
    """A data frame without nameless columns; refuses fields that no column has."""
    columns = [name.strip().lstrip("#").strip() for name in head]
    while len(columns) > 1 and not columns[-1]:
        columns.pop()
    # R writes row names in a column that its header does not count.
    if rows and all(len(r.fields) == len(columns) + 1 and r.fields[0].isdecimal() for r in rows):
        columns = ["", *columns]
    width = len(columns)
    for number, fields in rows:
        if any(value.strip() for value in fields[width:]):
            raise UserError(
                f"gt_csv: line {number} of {path.name} has {len(fields)} fields, the header has "
                f"{width} ({', '.join(columns)}): {_show(', '.join(fields))}. Quote labels "
                "with commas."
            )
    if doubled := {n for n in known_columns(columns).values() if columns.count(n) > 1}:
        raise UserError(
            f"gt_csv: {path.name} has two columns {min(doubled)!r} (found: {', '.join(columns)}). "
            "Needed: one name per column."
        )
    values = [[*fields[:width], *[""] * (width - len(fields))] for _, fields in rows]
    table = pd.DataFrame(values, columns=columns, dtype=object)
    named = [bool(name) and name not in columns[:n] for n, name in enumerate(columns)]
    return table.loc[:, named]


def _show(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
