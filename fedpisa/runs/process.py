"""Whose process this is: a library call leaves it as it was, fedpisa's own commands and workers tune theirs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_own = False


def is_own() -> bool:
    """Whether this process does nothing but fedpisa's work."""
    return _own


@contextmanager
def own_process() -> Iterator[None]:
    """Have runs postpone signals to the end of a round and, on a CPU, keep freed memory.

    Also a decorator, of a command's or a worker's main function.

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
