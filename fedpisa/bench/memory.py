"""The memory of a process and of all that it starts."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, final

import psutil

INTERVAL: Final = 0.1
"""Seconds between two looks."""
GROWN: Final = 1.01
"""What is less than this times the largest so far is not looked at more closely."""


class Memory(NamedTuple):
    """Bytes of a tree of processes.

    ``resident`` adds up what each has in memory, shared pages once per process; ``proportional`` counts a page that
    several share once, where the system says so (Linux), and otherwise leaves shared pages out. What the system has
    swapped out for a while counts too.
    """

    resident: int
    proportional: int


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants, those that there are at the moment.

    Examples
    --------
    >>> import os
    >>> os.getpid() in [process.pid for process in tree(os.getpid())]
    True
    """
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def in_use(pid: int) -> Memory:
    """Return the memory of a process and its descendants at the moment; processes of other users count as none."""
    resident = proportional = 0
    for process in tree(pid):
        with suppress(psutil.Error):
            one = process.memory_full_info()
            swapped = getattr(one, "swap", 0)
            resident += one.rss + swapped
            proportional += getattr(one, "pss", one.uss) + swapped
    return Memory(resident, proportional)


def own_peak() -> int:
    """Return the most bytes that this process, alone, has had in memory; 0 where the system does not say.

    Not ``ru_maxrss``, which begins with what the parent had when it started this process.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


@final
class PeakMemory:
    """Looks at a tree of processes now and then, from a thread of its own, and keeps the largest values.

    Counting shared pages goes through all of a process's memory, and keeps it waiting for as long: that is done where
    more of it is resident than ever before.

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
        pids, processes, most = list[int](), list[psutil.Process](), 0
        while True:
            now = psutil.pids()
            if now != pids:  # finding descendants takes much longer than listing all numbers
                pids, processes = now, tree(self.pid)
            resident = 0
            for process in processes:
                with suppress(psutil.Error):
                    resident += process.memory_info().rss
            if resident > GROWN * most:
                most = resident
                self.peak = Memory(*map(max, self.peak, in_use(self.pid)))
            if self._ended.wait(INTERVAL):
                return
