"""Ctrl-C and SIGTERM: a run ends its round first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, final


@final
class Interrupted(KeyboardInterrupt):
    """A run was told to stop, and did so at the end of a round.

    Parameters
    ----------
    signum
        The signal: 2 for Ctrl-C, 15 for SIGTERM.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


@final
class Stop:
    """The signal that came, if one did."""

    signum: int | None = None


_once = False


def ignore_second_signal() -> None:
    """Have this process heed one signal and no second one.

    For workers, which are signalled by their parent, and again where the whole group is signalled.
    """
    global _once
    _once = True


@contextmanager
def postponed(announce: Callable[[int], None] = lambda signum: None) -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM instead of ending at once; a second one does what it always did.

    Only a process's main thread can do so; in others nothing changes.

    Parameters
    ----------
    announce
        Told the signal when it comes.

    Examples
    --------
    >>> with postponed() as stop:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     print("still here:", stop.signum)
    still here: 15
    """
    stop = Stop()
    before: dict[int, Any] = {}

    def note(signum: int, frame: FrameType | None) -> None:
        if stop.signum is None:
            stop.signum = signum
            announce(signum)
        elif not _once:
            # This signal's handler only: were the other one just due, Python would find it without a handler.
            signal.signal(signum, before.pop(signum, signal.SIG_DFL))
            signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        for signum in (signal.SIGINT, signal.SIGTERM):
            # Who ignores a signal goes on ignoring it; None is a handler that Python cannot put back.
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, note)
    try:
        yield stop
    finally:
        while before:
            signal.signal(*before.popitem())
