"""The SQLite file that keeps every finished cell of a study.

One transaction per cell. The rollback journal with full synchronisation (SQLite's defaults, set
here in so many words) rather than a write-ahead log: a process killed at any moment leaves either
the whole cell or nothing, the store stays one plain file that can be copied or put on read-only
media, and with one small write per cell of seconds there is no speed to gain.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_APPLICATION_ID = 0x4E464446
"""Marks the file as ours ("NFDF"); a file with another number is never touched."""
SCHEMA_VERSION = 1
"""Raise with every change of the tables; files of another version are refused, not converted."""
_BUSY_SECONDS = 30.0
"""How long to wait for another process that writes to the same store."""

_SCHEMA = (
    """CREATE TABLE cells (
        key TEXT PRIMARY KEY,       -- sha256 of the canonical description
        description TEXT NOT NULL,  -- canonical JSON of every choice that matters
        seconds REAL NOT NULL,      -- wall-clock time it took
        finished TEXT NOT NULL      -- UTC
    ) WITHOUT ROWID""",
    """CREATE TABLE arrays (
        cell TEXT NOT NULL REFERENCES cells(key),
        name TEXT NOT NULL,
        shape TEXT NOT NULL,        -- JSON list
        data BLOB NOT NULL,         -- little-endian float64, C order
        PRIMARY KEY (cell, name)
    ) WITHOUT ROWID""",
)


class StoreError(ValueError):
    """A file is not a store that this version can use, or no longer a whole one."""


@dataclass(frozen=True, eq=False)
class Record:
    """One finished cell: its arrays, and how long they took."""

    arrays: Mapping[str, Array]
    seconds: float


class Store:
    """Finished cells by key, in one SQLite file; a context manager.

    Parameters
    ----------
    path : path
        The file; created if it does not exist, unless ``read_only``.
    read_only : bool
        Open an existing store without ever writing to it.

    Raises
    ------
    StoreError
        If the file is not an SQLite database, is one of another program, has another schema
        version, or is damaged. It is left as it was. Reading may find damage later too.
    OSError
        If the file cannot be opened or created.
    """

    def __init__(self, path: str | Path, *, read_only: bool = False) -> None:
        self.path = Path(path)
        mode = "ro" if read_only else "rwc"
        try:
            self._connection = sqlite3.connect(
                f"{self.path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
            )
        except sqlite3.OperationalError as error:
            raise OSError(f"cannot open the store {self.path}: {error}") from None
        try:
            self._check(read_only)
        except BaseException:
            self._connection.close()
            raise

    def _check(self, read_only: bool) -> None:
        """Refuse what is not ours; set up an empty file."""
        try:
            # In this order: another process may set it up in between.
            tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            application = self._pragma("application_id")
        except sqlite3.OperationalError as error:
            raise OSError(f"cannot open the store {self.path}: {error}") from None
        except sqlite3.DatabaseError:
            raise StoreError(
                f"store must be a study store of nfd_fast, got {self.path}, which is not an "
                "SQLite database"
            ) from None
        if application == 0 and tables == 0 and not read_only:
            self._create()
        elif application != _APPLICATION_ID:
            raise StoreError(
                f"store must be a study store of nfd_fast, got {self.path}, an SQLite database of "
                "another program"
            )
        with self._reading():
            version = self._pragma("user_version")
            sound = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
            master = self._connection.execute("SELECT name FROM sqlite_master")
            whole = sound and {"cells", "arrays"} <= {row[0] for row in master}
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"store must have schema version {SCHEMA_VERSION}, got {self.path} with version "
                f"{version}; use the version of nfd_fast that made it, or another file"
            )
        if not whole:
            raise self.damaged()
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("PRAGMA foreign_keys = ON")

    def _create(self) -> None:
        """Set up an empty database; all in one transaction, so no half-made store can remain."""
        try:
            self._connection.execute("PRAGMA journal_mode = DELETE")
            with _Transaction(self._connection):
                # Another process may have set it up while this one waited for the lock.
                if self._pragma("application_id") != _APPLICATION_ID:
                    for statement in _SCHEMA:
                        self._connection.execute(statement)
                    self._connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
                    self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.OperationalError as error:
            raise OSError(f"cannot write to the store {self.path}: {error}") from None

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"PRAGMA {name}").fetchone()[0])

    def damaged(self, key: str = "") -> StoreError:
        """Return the error that says so, of one cell or of the whole file."""
        where = f" (cell {key[:12]})" if key else ""
        return StoreError(
            f"store {self.path} is damaged{where}; move it away and run the same command again"
        )

    @contextmanager
    def _reading(self, key: str = "") -> Iterator[None]:
        """Turn what SQLite and NumPy say of a damaged file into words."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if str(error).startswith("no such"):  # table or column
                raise self.damaged(key) from None
            raise OSError(f"cannot read the store {self.path}: {error}") from None
        except (sqlite3.DatabaseError, TypeError, ValueError):
            raise self.damaged(key) from None

    def finished(self) -> frozenset[str]:
        """Keys of all finished cells."""
        with self._reading():
            return frozenset(row[0] for row in self._connection.execute("SELECT key FROM cells"))

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of ``keys`` that have no finished cell yet, in the same order."""
        stored = self.finished()
        return [key for key in keys if key not in stored]

    def put(
        self, key: str, description: str, arrays: Mapping[str, NDArray[Any]], seconds: float
    ) -> None:
        """Store one finished cell in one transaction; a cell already there stays as it is.

        Raises
        ------
        ValueError
            For an array that float64 may not hold without loss.
        OSError
            If the file cannot be written, for example on a full disk.
        """
        rows = [(key, name, *_encode(name, array)) for name, array in arrays.items()]
        try:
            with _Transaction(self._connection):
                new = self._connection.execute(
                    "INSERT OR IGNORE INTO cells VALUES (?, ?, ?, datetime('now'))",
                    (key, description, seconds),
                ).rowcount
                if new:
                    # Another program may have deleted the cell and left its arrays.
                    self._connection.execute("DELETE FROM arrays WHERE cell = ?", (key,))
                    self._connection.executemany("INSERT INTO arrays VALUES (?, ?, ?, ?)", rows)
        except sqlite3.OperationalError as error:
            raise OSError(f"cannot write to the store {self.path}: {error}") from None
        except (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError):
            raise  # of what was given, not of what is there
        except sqlite3.DatabaseError:
            raise self.damaged(key) from None

    def get(self, key: str) -> Record:
        """Return a finished cell; KeyError if there is none."""
        with self._reading(key):
            seconds = float(self._cell("seconds", key))
            arrays = self._connection.execute(
                "SELECT name, shape, data FROM arrays WHERE cell = ?", (key,)
            )
            return Record({name: _decode(shape, data) for name, shape, data in arrays}, seconds)

    def description(self, key: str) -> dict[str, Any]:
        """Return every choice behind a finished cell; KeyError if there is none."""
        with self._reading(key):
            description: dict[str, Any] = json.loads(self._cell("description", key))
        return description

    def _cell(self, column: str, key: str) -> Any:
        found = self._connection.execute(f"SELECT {column} FROM cells WHERE key = ?", (key,))
        row = found.fetchone()
        if row is None:
            raise KeyError(key)
        return row[0]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT, or ROLLBACK on any exception, an interrupt included."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        if self._connection.in_transaction:  # an interrupt came between BEGIN and the with block
            self._connection.execute("ROLLBACK")
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._connection.execute("COMMIT")
        elif self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


def _encode(name: str, array: NDArray[Any]) -> tuple[str, bytes]:
    if array.dtype.kind != "f" or array.dtype.itemsize > 8:
        raise ValueError(f"{name} must be floating point of at most 64 bits, got {array.dtype}")
    return json.dumps(array.shape), np.ascontiguousarray(array, dtype="<f8").tobytes()


def _decode(shape: str, data: bytes) -> Array:
    array = np.frombuffer(data, dtype="<f8").reshape(json.loads(shape))
    return array.astype(np.float64)  # native byte order, writable
