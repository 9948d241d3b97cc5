"""Processes that go on after the command that started them, and that are found again and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

import psutil

MARK: Final = "FEDPISA_DEPLOYMENT"
"""Variable in the environment of a deployment's processes, and of those that they start: its folder."""
GRACE: Final = 5.0
"""Seconds that processes have to end by themselves."""


@final
@dataclass(frozen=True)
class Process:
    """A process that was started.

    Parameters
    ----------
    name
        What it is called here.
    pid
        Its number, which the system gives to another one when it has ended.
    started
        When it was started, as the system says it: with the number it is unique.
    """

    name: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return started_at(self.pid) == self.started


def start(
    name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str], cwd: Path
) -> Process:
    """Start a process in a session of its own; what it says goes to ``<name>.log`` in the deployment's folder."""
    with (folder / f"{name}.log").open("ab") as log:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, MARK: str(folder)},
            cwd=cwd,
            start_new_session=True,
        )
    return Process(name, child.pid, started_at(child.pid) or "")


def end(folder: Path, processes: Sequence[Process]) -> int:
    """End the processes and those they started: asked first, and killed if they are still there after a while.

    Returns
    -------
    int
        How many had to be ended.
    """
    for process in processes:
        if process.alive:
            _signal(process.pid, signal.SIGTERM)
    found = _all_of(folder, processes)
    deadline = time.monotonic() + GRACE
    while _all_of(folder, processes) and time.monotonic() < deadline:
        time.sleep(0.1)
    while left := _all_of(folder, processes):
        for pid in left:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(found)


def _all_of(folder: Path, processes: Sequence[Process]) -> set[int]:
    """Return the processes that run: the started ones and, where the system tells (Linux), all with the mark."""
    return {process.pid for process in processes if process.alive} | _marked(folder)


def _marked(folder: Path) -> set[int]:
    marked = {
        process.pid for process in psutil.process_iter() if _environment(process).get(MARK) == str(folder)
    }
    return marked - {os.getpid()}


def _environment(process: psutil.Process) -> Mapping[str, str]:
    """Return the environment with which a process was started; none if it has ended, or is another user's."""
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            environment: dict[str, str] = process.environ()
            return environment
    return {}


def started_at(pid: int) -> str | None:
    """Return when a process was started, in seconds since the system was; ``None`` if it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            # Both move with the system's clock, and the difference does not.
            return f"{process.create_time() - psutil.boot_time():.2f}"
    return None


def _signal(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
