"""The memory of a process and its descendants."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple, Self, final

import psutil

INTERVAL: Final = 0.1
"""Seconds between two samples."""
GROWN: Final = 1.01
"""Shared pages are counted if the resident memory exceeds its maximum by this factor."""


class Memory(NamedTuple):
    """Bytes of a process and its descendants, including swapped pages.

    ``resident`` counts a shared page once per process. ``proportional`` counts it once in all on Linux, and leaves
    shared pages out on other systems.
    """

    resident: int
    proportional: int


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its current descendants; an empty list if the process has ended.

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
    """Return the current memory of a process and its descendants, without processes of other users."""
    resident = proportional = 0
    for process in tree(pid):
        with suppress(psutil.Error):
            info = process.memory_full_info()
            swapped = getattr(info, "swap", 0)
            resident += info.rss + swapped
            proportional += getattr(info, "pss", info.uss) + swapped
    return Memory(resident, proportional)


def own_peak() -> int:
    """Return the peak resident memory of this process alone, in bytes; 0 if the system does not report it.

    ``ru_maxrss`` is unsuitable, because it starts with the memory of the parent process.
    """
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    return 0


@final
class PeakMemory:
    """Context manager that samples the memory of a process and its descendants in a thread and keeps the maxima.

    Counting shared pages stops a process for as long as the system walks through its memory. So shared pages are
    counted only if more memory is resident than before.

    Parameters
    ----------
    pid
        Number of the process.

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

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        pids, processes, most = list[int](), list[psutil.Process](), 0
        while True:
            now = psutil.pids()
            if now != pids:  # finding descendants takes much longer than listing all process numbers
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
