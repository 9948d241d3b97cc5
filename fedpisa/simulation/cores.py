"""The processor: a thread of PyTorch's for each core, and memory that stays where it is."""

from __future__ import annotations

import ctypes
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


@cache
def keep_freed_memory() -> bool:
    """Have the C library keep what is freed for the next tensor; return whether it does.

    By default glibc gives large blocks back to the system at once and takes new ones, page by page, for the
    next result: where the stacked engine allocates the same few sizes again and again, a quarter of its time.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
