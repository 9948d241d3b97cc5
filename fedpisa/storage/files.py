"""Files that survive a crash of the process: replaced in one step, and locked by one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, final

from filelock import FileLock, Timeout

LOCK: Final = ".lock"
"""File that the process which writes a directory holds locked."""
PARTIAL: Final = ".partial"
"""How the names of files end that are being written."""


@final
class InUseError(ValueError):
    """Another process writes the directory."""


@final
class OccupiedError(ValueError):
    """There is something already where a result is to be written."""


def replace_file(file: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new one, never a part, also after a power cut.

    Raises
    ------
    OSError
        With the file's name, if it cannot be written; the old content stays.
    """
    temporary = file.with_name(f".{file.name}{PARTIAL}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync(file.parent)
    except OSError as error:
        with suppress(OSError):  # the error that is raised is the first one
            temporary.unlink(missing_ok=True)
        raise named(error, file) from error


def named(error: OSError, file: Path) -> OSError:
    """Return the error with the name of the file that it is about: a failed write does not say."""
    return OSError(error.errno, error.strerror, os.fspath(file))


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and its renames are on the disk when they return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_leftover(name: str) -> bool:
    """Return whether a file holds nothing that anyone would miss: a lock, or a part of a file."""
    return name == LOCK or name.endswith(PARTIAL)


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Make a directory, and keep other processes from writing to it until the block ends or this process does.

    Parameters
    ----------
    directory
        The directory; parents are made.
    wait
        Whether to wait for a process that holds it.

    Raises
    ------
    InUseError
        If another process holds it, and the call does not wait.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder)):
    ...     with locked(Path(folder)):
    ...         pass
    Traceback (most recent call last):
        ...
    fedpisa.storage.files.InUseError: ... is being written by another process: wait for it, or end it
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / LOCK, timeout=-1 if wait else 0, thread_local=False).acquire()
    except Timeout:
        raise InUseError(f"{directory} is being written by another process: wait for it, or end it") from None
    with lock:
        yield
