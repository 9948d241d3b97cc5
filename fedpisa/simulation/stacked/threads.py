"""The processor: a thread of PyTorch's for each core, and memory that stays where it is."""

from __future__ import annotations

import ctypes
import mmap
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final

import torch

# From glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8
_PAGE: Final = 2**21
_LARGE: Final = 2**30


@contextmanager
def one_thread_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads in each of which PyTorch's operations run on that thread alone.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> with one_thread_each(2) as pool:
    ...     list(pool.map(lambda number: torch.get_num_threads(), range(4)))
    [1, 1, 1, 1]
    >>> torch.get_num_threads() == before
    True
    """
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep PyTorch's operations to one thread: sums in another order give other bits, and small ones only wait.

    Examples
    --------
    >>> with one_thread():
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def allocator() -> str:
    """Return ``"tuned"`` after `keep_freed_memory`, otherwise ``"default"``."""
    tuned = keep_freed_memory.cache_info().currsize and keep_freed_memory()
    return "tuned" if tuned else "default"


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next tensor, in large pages; return whether it does.

    This is for a process that does nothing but train: it lasts, and other libraries' memory is kept, too.

    By default glibc gives large blocks back to the system at once and takes new ones, page by page, for the
    next result: where the stacked engine allocates the same few sizes again and again, a quarter of its time.
    Vectors of a million numbers lie on thousands of small pages, whose addresses a processor cannot remember.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)):
        return False
    libc.mallopt(_ARENA_MAX, 1)
    # Addresses, not memory: a page is taken when it is first written to.
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    block = libc.malloc(_LARGE)
    if block:
        begin = -(-block // _PAGE) * _PAGE
        libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.madvise(begin, (block + _LARGE - begin) // _PAGE * _PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True
