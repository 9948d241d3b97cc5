"""Rows of bytes in a temporary file, written while others go on.

The file lies in the folder of the environment's ``TMPDIR``. It has no name any more once it is open, so nothing is left
behind however a run ends. Shapes: ``N`` rows, ``S`` of them at a time.
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
from logging import getLogger
from operator import itemgetter
from typing import Any, Final, final
from weakref import finalize

import numpy as np

_LOG = getLogger("fedpisa")

CACHED_SHARE: Final = 0.25
"""Share of the machine's memory up to which a file is left to the system's cache."""
_PAGE: Final = 4096
_PIECE: Final = 4 * 2**20
"""Bytes that are written at once."""
_ASKED_FOR: Final = 1024
"""Rows that the disk is asked for at once."""


@final
class RowFile:
    """A file of rows in the order in which they were first written; a row that was never written is not in it.

    So the rows of clients that are new, which in a large federation are nearly all, are one piece. Where all rows
    together might outgrow the machine's memory they are written by direct I/O (``O_DIRECT``), past the system's cache,
    from which a row would be gone before its client comes again.

    Parameters
    ----------
    num_rows
        ``N``.
    size
        Bytes of a row.
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
        # From one row's beginning to the next one's: direct I/O begins and ends with a page, in memory as in the file.
        self._pitch = -(-size // _PAGE) * _PAGE if self._direct else size
        needed, free = num_rows * self._pitch, shutil.disk_usage(self.folder).free
        if needed > free:
            _LOG.warning(
                "clients' vectors may come to take %.0f GB in %s, with %.0f GB free: set TMPDIR to a larger folder",
                needed / 1e9,
                self.folder,
                free / 1e9,
            )
        length = max(_PIECE // self._pitch, 1)
        self._piece = np.frombuffer(mmap.mmap(-1, length * self._pitch), np.uint8).reshape(
            length, self._pitch
        )
        self._place_N = np.full(num_rows, -1)
        self._num_places = 0
        self._writer = ThreadPoolExecutor(1)
        self._written: Future[None] | None = None
        # What is on its way into the file, or was a moment ago, by row.
        self._latest: dict[int, Any] = {}

    def grow(self, num_rows: int) -> None:
        """Let there be more rows."""
        self._place_N = np.append(self._place_N, np.full(num_rows - len(self._place_N), -1))

    def read(self, ids_S: Any, rows_S: Any) -> None:
        """Fill rows ``(S, size)``; those that were never written stay as they are."""
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
        for first in range(0, len(in_file), _ASKED_FOR):
            part = in_file[first : first + _ASKED_FOR]
            if self._direct:
                for begin, row in part:
                    os.posix_fadvise(self._reading, begin, len(row), os.POSIX_FADV_WILLNEED)
            for begin, row in part:
                self._all_of(row, begin, lambda rest, at: os.preadv(self._reading, [rest], at))
            if self._direct:
                os.posix_fadvise(self._reading, 0, 0, os.POSIX_FADV_DONTNEED)

    def write(self, ids_S: Any, rows_S: Any) -> None:
        """Begin to write rows ``(S, size)``; they must stay as they are until the next call, which waits for that.

        Raises
        ------
        OSError
            Here or when rows are next read, if those of the call before could not be written.
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
        """Read or write bytes that lie side by side: one call of the system's moves 2 GB at most."""
        while len(rest):
            try:
                moved = move(rest, at)
            except OSError as error:
                text = f"clients' vectors cannot be kept ({error.strerror}): set TMPDIR to a folder with more room"
                raise OSError(error.errno, text, self.folder) from error
            assert moved, "the file has all rows that were written"
            rest, at = rest[moved:], at + moved


def _opened_direct(name: str) -> int | None:
    """Open a file for direct I/O of whole pages, where system, folder and disk can do that."""
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
    """Yield begin and end of rows whose places are side by side, ``length`` of them at most.

    Examples
    --------
    >>> list(pieces(np.array([7, 8, 9, 3, 5]), 2))
    [(0, 2), (2, 3), (3, 4), (4, 5)]
    """
    ends = np.flatnonzero(np.diff(places_S) != 1) + 1
    for begin, end in itertools.pairwise([0, *ends.tolist(), len(places_S)]):
        for first in range(begin, end, length):
            yield first, min(first + length, end)
