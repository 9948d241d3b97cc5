"""PyTorch's threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch


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
