"""Rows of bytes in a temporary file, written in the background.

The file lies in the folder that the environment variable ``TMPDIR`` names. Its name is deleted as soon as it is open,
so that the operating system frees it when the process ends. Shapes: ``N`` rows, ``S`` rows of one call.
"""

from __future__ import annotations

import itertools
import mmap
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from operator import itemgetter
from typing import Any, Final, final
from weakref import finalize

import numpy as np

from fedpisa.components import LOG

CACHED_SHARE: Final = 0.25
"""Share of the machine's memory up to which a file uses the system's cache."""
_PAGE: Final = 4096
_PIECE: Final = 4 * 2**20
"""Number of bytes in one write."""
_READ_AHEAD: Final = 1024
"""Number of rows that are requested from the disk in advance."""


@final
class RowFile:
    """A file of rows in the order of their first write; rows that were never written take no space.

    The rows of new clients, which are nearly all clients of a large federation, are thus contiguous. If the rows could
    exceed `CACHED_SHARE` of the memory, direct I/O (``O_DIRECT``) writes them past the system's cache: the cache would
    drop a row before its client takes part again.

    Parameters
    ----------
    num_rows
        Number of rows ``N``.
    size
        Bytes per row.
    """

    def __init__(self, num_rows: int, size: int) -> None:
        self.folder = tempfile.gettempdir()
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        outgrows = num_rows * size > CACHED_SHARE * memory and size >= 4 * _PAGE
        self._reading, name = tempfile.mkstemp(prefix="fedpisa-", suffix=".rows", dir=self.folder)
        finalize(self, os.close, self._reading)
        try:
            direct = _opened_direct(name) if outgrows else None
            self._direct = direct is not None
            self._writing = self._reading
            if direct is not None:
                self._writing = direct
                finalize(self, os.close, direct)
        finally:
            os.unlink(name)
        # Bytes between the beginnings of two rows: direct I/O needs whole pages, in memory and in the file.
        self._pitch = -(-size // _PAGE) * _PAGE if self._direct else size
        needed, free = num_rows * self._pitch, shutil.disk_usage(self.folder).free
        if needed > free:
            LOG.warning(
                "clients' vectors may need %.0f GB in %s, which has %.0f GB free: set TMPDIR to a larger folder",
                needed / 1e9,
                self.folder,
                free / 1e9,
            )
        length = max(_PIECE // self._pitch, 1)
        memory_of_piece = mmap.mmap(-1, length * self._pitch)
        self._piece = np.frombuffer(memory_of_piece, np.uint8).reshape(length, self._pitch)
        self._place_N = np.full(num_rows, -1)
        self._num_places = 0
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        # Rows of the last write by number; they may not be in the file yet.
        self._latest: dict[int, Any] = {}

    def grow(self, num_rows: int) -> None:
        """Raise the number of rows to ``num_rows``."""
        self._place_N = np.append(self._place_N, np.full(num_rows - len(self._place_N), -1))

    def read(self, ids_S: Any, rows_S: Any) -> None:
        """Read rows into ``rows_S`` ``(S, size)``; entries of rows that were never written stay unchanged."""
        if self._written is not None and self._written.done():
            self._written.result()
        begin_S = self._place_N[ids_S] * self._pitch
        in_file = []
        for row, row_id, begin in zip(rows_S, ids_S.tolist(), begin_S.tolist(), strict=True):
            if row_id in self._latest:
                row[:] = self._latest[row_id]
            elif begin >= 0:
                in_file.append((begin, row))
        in_file.sort(key=itemgetter(0))
        for first in range(0, len(in_file), _READ_AHEAD):
            part = in_file[first : first + _READ_AHEAD]
            if self._direct:
                for begin, row in part:
                    os.posix_fadvise(self._reading, begin, len(row), os.POSIX_FADV_WILLNEED)
            for begin, row in part:
                self._all_of(row, begin, lambda rest, at: os.preadv(self._reading, [rest], at))
            if self._direct:
                os.posix_fadvise(self._reading, 0, 0, os.POSIX_FADV_DONTNEED)

    def write(self, ids_S: Any, rows_S: Any) -> None:
        """Start to write rows ``(S, size)``; do not change them until the next call, which waits for the end.

        Raises
        ------
        OSError
            If the rows of the previous call could not be written; `read` raises it too.
        """
        if not len(ids_S):
            return
        if self._written is not None:
            self._written.result()
        places_S = self._place_N[ids_S]
        new_S = np.flatnonzero(places_S < 0)
        places_S[new_S] = np.arange(self._num_places, self._num_places + len(new_S))
        self._place_N[ids_S] = places_S
        self._num_places += len(new_S)
        self._latest = dict(zip(ids_S.tolist(), rows_S, strict=True))
        self._written = self._writer.submit(self._write, places_S, rows_S)

    def _write(self, places_S: Any, rows_S: Any) -> None:
        for begin, end in pieces(places_S, len(self._piece)):
            piece = self._piece[: end - begin]
            piece[:, : rows_S.shape[1]] = rows_S[begin:end]
            at = int(places_S[begin]) * self._pitch
            self._all_of(piece.reshape(-1), at, lambda rest, at: os.pwrite(self._writing, rest, at))

    def _all_of(self, rest: Any, at: int, move: Callable[[Any, int], int]) -> None:
        """Read or write contiguous bytes with repeated system calls, of which each moves at most 2 GB."""
        while len(rest):
            try:
                moved = move(rest, at)
            except OSError as error:
                text = f"clients' vectors cannot be stored ({error.strerror}): set TMPDIR to a folder with more room"
                raise OSError(error.errno, text, self.folder) from error
            assert moved, "the file contains all written rows"
            rest, at = rest[moved:], at + moved


def _opened_direct(name: str) -> int | None:
    """Open a file for direct I/O of whole pages; return ``None`` if system, folder or disk do not support it."""
    if sys.platform != "linux":
        return None
    with suppress(OSError):
        descriptor = os.open(name, os.O_WRONLY | os.O_DIRECT)
        try:
            os.pwrite(descriptor, mmap.mmap(-1, _PAGE), 0)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None


def pieces(places_S: Any, length: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of runs of at most ``length`` rows with consecutive places.

    Examples
    --------
    >>> list(pieces(np.array([7, 8, 9, 3, 5]), 2))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.flatnonzero(np.diff(places_S) != 1) + 1
    for begin, end in itertools.pairwise([0, *ends.tolist(), len(places_S)]):
        for first in range(begin, end, length):
            yield first, min(first + length, end)
