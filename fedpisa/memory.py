"""How the system is told what memory is for."""

from __future__ import annotations

import ctypes


def advise(address: int, size: int, advice: int) -> None:
    """Call ``madvise``; ``address`` is that of a page, ``size`` bytes, ``advice`` one of its numbers."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    madvise(address, size, advice)
