"""PyTorch's threads, and the C library's memory allocator."""

from __future__ import annotations

import ctypes
import math
import mmap
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final, final

import torch
from torch import Tensor

# From glibc's malloc.h.
_TRIM_THRESHOLD: Final = -1
_MMAP_MAX: Final = -4
_ARENA_MAX: Final = -8
_PAGE: Final = 2**21
_LARGE: Final = 2**30


@contextmanager
def one_thread_each(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads, each of which runs PyTorch's operations on a single thread.

    Examples
    --------
    >>> before = torch.get_num_threads()
    >>> with one_thread_each(2) as pool:
    ...     list(pool.map(lambda number: torch.get_num_threads(), range(4)))
    [1, 1, 1, 1]
    >>> torch.get_num_threads() == before
    True
    """
    with one_thread(), ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch's operations on a single thread: sums keep their order, and small operations do not wait.

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


@final
class Scratch:
    """The stacked engine's own memory, kept from round to round, for what no other part of a run gets to see.

    Of a tensor of more than 32 MB glibc, left alone, gives the pages back as soon as it is freed, and the system has
    to make new ones. With ten clients of 4.8 million parameters this halves the page faults of FedAvg's round.

    Examples
    --------
    >>> scratch, like = Scratch(), torch.zeros(())
    >>> first, second = (scratch.empty("point", (2, 3), like).fill_(value) for value in (1.0, 2.0))
    >>> first.tolist()
    [[2.0, 2.0, 2.0], [2.0, 2.0, 2.0]]
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def empty(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Return the memory of a name as a tensor without values, of the type and on the device of ``like``."""
        memory, size = self._memory.get(name), math.prod(shape)
        if memory is None or len(memory) < size or (memory.dtype, memory.device) != (like.dtype, like.device):
            memory = self._memory[name] = like.new_empty(size)
        return memory[:size].view(shape)


@cache
def keep_freed_memory() -> bool:
    """Make the C library reuse freed memory, in large pages; return whether it does.

    The setting lasts until the process ends and affects other libraries, so it suits only a process that only trains.

    By default glibc returns large blocks to the system at once and gets new ones, page by page, for the next result.
    This takes a quarter of the time of the stacked engine, which allocates the same few sizes again and again. A vector
    of a million numbers covers thousands of small pages, more than a processor's address cache holds.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not (libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)):
        return False
    libc.mallopt(_ARENA_MAX, 1)
    # This reserves addresses only: a page takes memory when it is first written to.
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    block = libc.malloc(_LARGE)
    if block:
        begin = -(-block // _PAGE) * _PAGE
        libc.madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
        libc.madvise(begin, (block + _LARGE - begin) // _PAGE * _PAGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True
