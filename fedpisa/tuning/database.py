"""The SQLite database of a tuning's directory."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

import pydantic

from fedpisa import components

DATABASE: Final = "tune.db"
TIMEOUT: Final = 60
"""Seconds to wait for another process's write."""
_MAGIC: Final = b"SQLite format 3\0"
_DAMAGE: Final = (
    *(LookupError, TypeError, AttributeError, AssertionError, StopIteration, RecursionError, OverflowError),
    *(json.JSONDecodeError, UnicodeDecodeError, pydantic.ValidationError),
)


def connect(file: Path) -> sqlite3.Connection:
    """Open the database with write-ahead logging; a power cut can lose the last trials only.

    Raises
    ------
    DatabaseError
        If the file has content of another format; SQLite replaces a file of a few bytes by an empty database.
    """
    with suppress(FileNotFoundError), file.open("rb") as content:
        if (begin := content.read(len(_MAGIC))) and begin != _MAGIC:
            raise DatabaseError(f"{DATABASE} is damaged, it is no SQLite database: remove it to begin anew")
    connection = sqlite3.connect(file, timeout=TIMEOUT, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


@contextmanager
def database_errors() -> Iterator[None]:
    """Raise database errors, such as a full disk or a damaged entry, as errors in one line."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.DatabaseError) as error:
        cause = error.__cause__ or error
        reason = components.one_line(getattr(cause, "orig", None) or cause)
        raise DatabaseError(f"{DATABASE} cannot be used: {reason}") from error
    except _DAMAGE as error:  # reading a damaged entry may fail in any of these ways
        reason = components.printable(components.one_line(error))
        raise DatabaseError(f"{DATABASE} is damaged ({type(error).__name__}: {reason})") from error


@final
class DatabaseError(ValueError):
    """An error in reading or writing the trials."""
