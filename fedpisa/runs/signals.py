"""Ctrl-C, SIGTERM and SIGHUP, the end of the terminal, at the end of a round."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, final


@final
class Interrupted(KeyboardInterrupt):
    """A signal stopped a run at the end of a round.

    Parameters
    ----------
    signum
        The signal: 2 for Ctrl-C, 15 for SIGTERM, 1 for SIGHUP.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


@final
class Stop:
    """The signal that arrived, if any."""

    signum: int | None = None


SIGNALS: Final = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)
"""Signals that end a run after its round."""

_once = False


def ignore_second_signal() -> None:
    """Make this process ignore all signals after the first.

    This is for workers: a signal to the whole process group reaches them twice, directly and through their parent.
    """
    global _once
    _once = True


@contextmanager
def postponed(announce: Callable[[int], None] = lambda signum: None) -> Iterator[Stop]:
    """Record the first of `SIGNALS` instead of ending at once; the second one acts as usual.

    Outside the main thread this has no effect, because only the main thread can handle signals.

    Parameters
    ----------
    announce
        Function that is called with the first signal.

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
            # Only this signal's handler is restored: the other signal may be pending and needs its handler.
            signal.signal(signum, before.pop(signum, signal.SIG_DFL))
            signal.raise_signal(signum)

    if threading.current_thread() is threading.main_thread():
        for signum in SIGNALS:
            # Ignored signals stay ignored; Python cannot restore a handler that it reports as None.
            if signal.getsignal(signum) not in (signal.SIG_IGN, None):
                before[signum] = signal.signal(signum, note)
    try:
        yield stop
    finally:
        while before:
            signal.signal(*before.popitem())
