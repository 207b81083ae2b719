"""SQLite cache of per-file results, so that unchanged files are not read again.

An entry is invalid when its signature (names, sizes, times and inodes of files) has changed; then
the files are read, and their content decides.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

from k400tiny_lib.config import Config
from k400tiny_lib.files import cannot_write, local_path

_FILE = Path(".k400tiny", "content.sqlite")
_VERSION = 2  # a file of another version is replaced
_BUSY_SECONDS = 120.0
_TABLE = (
    "CREATE TABLE IF NOT EXISTS facts (root TEXT, name TEXT, signature TEXT, fact TEXT, "
    "PRIMARY KEY (root, name)) WITHOUT ROWID"
)


class ContentIndex:
    """A table (root, name) -> (signature, fact), all of them texts.

    Several processes may use one file: SQLite locks it while it writes, and a process that is
    killed leaves the file as it was before its last `save`.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._create()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, read-only, disk full
                    raise
                path.unlink(missing_ok=True)  # not a database; a new one costs reading again
                self._create()
        except (OSError, sqlite3.Error) as error:
            raise cannot_write("output_dir", path, error) from None

    def load(self, root: str) -> dict[str, tuple[str, str]]:
        """All entries below a root: name -> (signature, fact)."""
        with self._connect() as connection:
            query = "SELECT name, signature, fact FROM facts WHERE root = ?"
            rows = connection.execute(query, (root,))
            return {name: (signature, fact) for name, signature, fact in rows}

    def save(self, root: str, rows: Iterable[tuple[str, str, str]]) -> None:
        """Write (name, signature, fact) rows, all or none."""
        with self._connect() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO facts VALUES (?, ?, ?, ?)", ((root, *row) for row in rows)
            )

    def _create(self) -> None:
        with self._connect() as connection:
            connection.execute("BEGIN IMMEDIATE")  # no other process in between
            if connection.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                connection.execute("DROP TABLE IF EXISTS facts")
                connection.execute(f"PRAGMA user_version = {_VERSION}")
            connection.execute(_TABLE)

    @contextlib.contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        connection = sqlite3.connect(self._path, timeout=_BUSY_SECONDS)
        try:
            with connection:  # one transaction
                yield connection
        finally:
            connection.close()


def open_index(config: Config) -> ContentIndex:
    """The index in the local directory of `output_dir`; a UserError if it cannot be there."""
    return ContentIndex(local_path(config.output_dir) / _FILE)
