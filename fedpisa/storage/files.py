"""Checked reads and atomic writes of a result's files, and directories that one process at a time may write.

A result may come from anywhere. No symbolic link in its folder is followed: it could lead to any file.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Final, TypeVar, final

from filelock import FileLock, Timeout

T = TypeVar("T")

LOCK: Final = ".lock"
"""Name of a directory's lock file; the process that writes the directory holds the lock."""
LONGEST: Final = 100
"""Bytes of the longest name that `shortened` returns; file systems allow 255, with all suffixes."""
PARTIAL: Final = ".partial"
"""Suffix of files that are not yet complete."""


@final
class InUseError(ValueError):
    """Another process writes the directory."""


@final
class OccupiedError(ValueError):
    """The place for a result is not empty."""


@final
class DamagedFileError(ValueError):
    """A file does not have the content that was written to it.

    Parameters
    ----------
    file
        Path of the file.
    reason
        What is wrong with it, if that is known.
    """

    def __init__(self, file: Path, reason: str = "") -> None:
        super().__init__(f"{file} is damaged" + (f" ({reason})" if reason else ""))


def digest_of(content: bytes) -> str:
    """Return a digest of a file's content: 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def read_file(file: Path, decode: Callable[[bytes], T], digest: str | None = None) -> T:
    """Return what ``decode`` makes of a file's content.

    Parameters
    ----------
    file
        The file.
    decode
        Function of the content. Each of its errors is taken for damage of the file.
    digest
        The digest of the content as it was written, if it is known.

    Raises
    ------
    DamagedFileError
        If the file is missing or has another digest, or ``decode`` fails.
    ValueError
        If the file is a symbolic link or not a file.

    Examples
    --------
    >>> import json, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "run.json"
    ...     replace_file(file, b"[" * 100_000)
    ...     read_file(file, json.loads)
    Traceback (most recent call last):
        ...
    fedpisa.storage.files.DamagedFileError: ...run.json is damaged (maximum recursion depth exceeded...)
    """
    try:
        content = read_bytes(file)
    except OSError as error:
        raise DamagedFileError(file, error.strerror or "") from error
    if digest not in (None, digest_of(content)):
        raise DamagedFileError(file, "its content is not what was written")
    try:
        return decode(content)
    except DamagedFileError:
        raise
    except Exception as error:  # decoders of damaged content may fail in any way
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DamagedFileError(file, reason) from error


def open_file(file: Path, flags: int = os.O_RDONLY) -> int:
    """Open a file of a result and return its descriptor.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is a symbolic link, or not a file.
    """
    refuse_link(file)
    # Without O_NONBLOCK, a pipe of that name would be waited for.
    descriptor = os.open(file, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise ValueError(f"{file} is not a file: remove it")


def refuse_link(path: Path) -> Path:
    """Return the path of a file or folder in a result's folder.

    Raises
    ------
    ValueError
        If it is a symbolic link.
    """
    if path.is_symlink():
        raise ValueError(
            f"{path} is a symbolic link, and none is followed in a result's folder: put there what it leads to"
        )
    return path


def inside(folder: Path, relative: PurePath) -> Path:
    """Return a path in a result's folder; see `refuse_link` for errors."""
    path = folder
    for part in relative.parts:
        path = refuse_link(path / part)
    return path


def read_bytes(file: Path) -> bytes:
    """Return the content of a file of a result; see `open_file` for errors."""
    with open(open_file(file), "rb") as stream:
        return stream.read()


def replace_file(file: Path, content: bytes) -> None:
    """Write a file atomically: a reader finds the old content or the new one, even after a power cut.

    A symbolic link of that name is replaced, and the file to which it leads stays as it is.

    Raises
    ------
    OSError
        If the file cannot be written, with its name; the old content stays.
    """
    temporary = file.with_name(f".{file.name}{PARTIAL}")
    try:
        if temporary.is_symlink():
            temporary.unlink()
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
        sync(file.parent)
    except OSError as error:
        with suppress(OSError):  # raise the first error
            temporary.unlink(missing_ok=True)
        raise named(error, file) from error


def named(error: OSError, file: Path) -> OSError:
    """Return the error with the name of its file, which an error of a write lacks."""
    return OSError(error.errno, error.strerror, os.fspath(file))


def sync(path: Path) -> None:
    """Wait until the content of a file or the entries of a folder are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and its renames are synchronous
    # A user's directory may be a link. Nothing is read or written here.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shortened(name: str) -> str:
    """Return a name that a file can have: a long one is cut, and a digest keeps it different from all others.

    Examples
    --------
    >>> shortened("fedavg"), len(shortened("m" * 300)), shortened("m" * 300) == shortened("m" * 301)
    ('fedavg', 100, False)
    """
    content = name.encode()
    if len(content) <= LONGEST:
        return name
    return f"{content[: LONGEST - 9].decode(errors='ignore')}-{digest_of(content)[:8]}"


def is_leftover(name: str) -> bool:
    """Return whether a file holds no data of a run: a lock, or an incomplete file."""
    return name == LOCK or name.endswith(PARTIAL)


@contextmanager
def locked(directory: Path, *, wait: bool = False) -> Iterator[None]:
    """Create a directory, and hold its lock until the block or the process ends.

    Parameters
    ----------
    directory
        The directory; missing parents are created.
    wait
        Whether to wait while another process holds the lock.

    Raises
    ------
    InUseError
        If another process holds the lock, and ``wait`` is false.

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
    refuse_link(directory / LOCK)
    try:
        lock = FileLock(directory / LOCK, timeout=-1 if wait else 0, thread_local=False).acquire()
    except Timeout:
        raise InUseError(f"{directory} is being written by another process: wait for it, or end it") from None
    with lock:
        yield
