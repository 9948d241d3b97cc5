"""The memory of a process and of all that it starts."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self, final

INTERVAL: Final = 0.1
"""Seconds between two looks."""
GROWN: Final = 1.01
"""What is less than this times the largest so far is not looked at more closely."""
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
    total = _added_up(pid, "smaps_rollup")
    return Memory(total["Rss"] + total["Swap"], total["Pss"] + total["SwapPss"])


def _added_up(pid: int, file: str) -> Counter[str]:
    """Return the bytes under each name of a file about every process of a tree, added up."""
    total: Counter[str] = Counter()
    for process in tree(pid):
        for line in _text(_PROC / str(process) / file).splitlines():
            if line.endswith(" kB"):
                name, _, value = line.partition(":")
                total[name] += 1024 * int(value.split()[0])
    return total


def own_peak() -> int:
    """Return the most bytes that this process, alone, has had in memory; 0 where the system does not say."""
    for line in _text(_PROC / "self" / "status").splitlines():
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
        while True:
            now = _added_up(self.pid, "status")
            if now["VmRSS"] + now["VmSwap"] > GROWN * self.peak.resident:
                self.peak = Memory(*map(max, self.peak, in_use(self.pid)))
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
