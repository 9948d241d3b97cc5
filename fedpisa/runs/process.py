"""What runs do to their process: fedpisa's own processes postpone signals, and all reserve memory for a while."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

_BLOCK: Final = 2**25 - 2**14
"""Size of the largest block by which glibc extends its heap: 32 MB, less a header."""
_NUM_BLOCKS: Final = 256

_HOLES: Final[list[object]] = []
"""Blocks that fill the holes in the heap between runs; see `reserved_heap`."""

_own = _reserved = False


def is_own() -> bool:
    """Return whether this process only runs fedpisa."""
    return _own


@contextmanager
def own_process() -> Iterator[None]:
    """Have runs postpone signals to the end of a round.

    It also decorates the main function of a command or a worker.

    Examples
    --------
    >>> with own_process():
    ...     is_own()
    True
    >>> is_own()
    False
    """
    global _own
    before, _own = _own, True
    try:
        yield
    finally:
        _own = before


@contextmanager
def reserved_heap() -> Iterator[None]:
    """Reserve 8 GB of addresses in the C library's heap, and return them with all free memory at the end.

    The engines allocate the same few sizes in every round. By default glibc returns large blocks to the system when
    they are freed, and gets new ones, page by page, for the next result. But it takes a block from free addresses in
    its heap if there are any, and shrinks the heap only from its end. So a block at the end, above free addresses,
    makes it reuse memory. Addresses that are never written to take no memory.

    After the run the heap can have large holes below an object that is still in use. They are filled with blocks
    without memory until the next run, so that large blocks of other code go to the system as before. Without glibc, and
    if the system refuses, nothing happens.

    Examples
    --------
    >>> with reserved_heap():
    ...     pass
    """
    global _reserved
    if _reserved or platform.libc_ver()[0] != "glibc":  # a run within a run
        yield
        return
    _reserved = True
    _HOLES.clear()
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    free: list[object] = []
    with suppress(MemoryError):
        _block()  # Freeing a block makes glibc extend its heap for the next of this size.
        free.extend(_block() for _ in range(_NUM_BLOCKS))
    end = free.pop() if free else None
    free.clear()
    try:
        yield
    finally:
        del end
        libc.malloc_trim(0)
        heap_end = libc.sbrk(0)
        # The number is bounded, because with unlimited stacks all other memory lies below the heap.
        with suppress(MemoryError):
            while len(_HOLES) < _NUM_BLOCKS and (block := _block()).ctypes.data < heap_end:
                _HOLES.append(block)
        _reserved = False


def _block() -> np.ndarray[Any, Any]:
    import numpy as np

    return np.empty(_BLOCK, np.uint8)
