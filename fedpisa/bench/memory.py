"""The memory of a process and of all that it starts."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, final

INTERVAL: Final = 0.1
"""Seconds between two looks."""
_PROC: Final = Path("/proc")


class Memory(NamedTuple):
    """Bytes of a tree of processes.

    ``resident`` adds up what each has in memory, shared pages once per process; ``proportional`` counts a page that
    several share once. What the system has swapped out for a while counts too.
    """

    resident: int
    proportional: int


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, those that there are at the moment.

    Examples
    --------
    >>> import os
    >>> os.getpid() in tree(os.getpid())
    True
    """
    found, waiting = [], [pid]
    while waiting:
        process = waiting.pop()
        found.append(process)
        for task in _entries(_PROC / str(process) / "task"):
            waiting += [int(child) for child in _text(task / "children").split()]
    return found


def in_use(pid: int) -> Memory:
    """Return the memory of a process and its descendants at the moment; zeros where there is no ``/proc``."""
    resident = proportional = 0
    for process in tree(pid):
        kilobytes = {
            name: int(value.split()[0])
            for name, _, value in (
                line.partition(":")
                for line in _text(_PROC / str(process) / "smaps_rollup").splitlines()
                if line.endswith(" kB")
            )
        }
        resident += 1024 * (kilobytes.get("Rss", 0) + kilobytes.get("Swap", 0))
        proportional += 1024 * (kilobytes.get("Pss", 0) + kilobytes.get("SwapPss", 0))
    return Memory(resident, proportional)


def own_peak() -> int:
    """Return the most bytes that this process, alone, has had in memory; 0 where the system does not say."""
    for line in _text(_PROC / "self" / "status").splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    return 0


@final
class PeakMemory:
    """Looks at a tree of processes now and then, from a thread of its own, and keeps the largest values.

    Parameters
    ----------
    pid
        The root.

    Examples
    --------
    >>> import os
    >>> with PeakMemory(os.getpid()) as memory:
    ...     pass
    >>> memory.peak.resident >= memory.peak.proportional
    True
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.peak = Memory(0, 0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            now = in_use(self.pid)
            self.peak = Memory(*map(max, self.peak, now))
            if self._ended.wait(INTERVAL):
                return


def _text(file: Path) -> str:
    """Return a file's text, none if its process is gone or another's."""
    try:
        return file.read_text()
    except OSError:
        return ""


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []
