"""PyTorch's threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TypeVar, final

import torch

T = TypeVar("T")


@final
class Threads:
    """Threads, each of which runs PyTorch's operations on a single thread.

    They start at the first call and wait between the calls, because a start takes a millisecond on some systems. They
    end when the object is deleted.

    Parameters
    ----------
    number
        Number of threads.

    Examples
    --------
    >>> before, threads = torch.get_num_threads(), Threads(2)
    >>> threads.map(lambda number: torch.get_num_threads(), range(4))
    [1, 1, 1, 1]
    >>> torch.get_num_threads() == before
    True
    """

    def __init__(self, number: int) -> None:
        self._number = number

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._number, initializer=torch.set_num_threads, initargs=(1,))

    def map(self, function: Callable[..., T], *arguments: Iterable[Any]) -> list[T]:
        """Return a function's values, in order; after an error or an interruption, too, all calls have ended."""
        with one_thread():
            calls = [self._pool.submit(function, *these) for these in zip(*arguments, strict=True)]
            try:
                return [call.result() for call in calls]
            finally:
                wait(calls)


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
