"""Whether fedpisa owns the process: commands and workers tune their process, and library calls leave it unchanged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_own = False


def is_own() -> bool:
    """Return whether this process only runs fedpisa."""
    return _own


@contextmanager
def own_process() -> Iterator[None]:
    """Have runs postpone signals to the end of a round and, on a CPU, keep freed memory.

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
