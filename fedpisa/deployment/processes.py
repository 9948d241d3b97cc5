"""Background processes: they outlive the command that starts them, and a later command ends them."""

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
"""Environment variable of a deployment's processes and of their children. Its value is the deployment's folder."""
GRACE: Final = 5.0
"""Seconds between SIGTERM and SIGKILL."""


@final
@dataclass(frozen=True)
class Process:
    """A background process.

    Parameters
    ----------
    name
        Its name in the deployment.
    pid
        Its process number, which the system may reuse after its end.
    started
        Its start time as the system reports it. Number and start time together are unique.
    """

    name: str
    pid: int
    started: str

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return started_at(self.pid) == self.started


def start(
    name: str, command: Sequence[str], folder: Path, environment: Mapping[str, str], cwd: Path
) -> Process:
    """Start a process in a new session, with its output in ``<name>.log`` in the deployment's folder."""
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
    """End the processes and their children: with SIGTERM, and after `GRACE` seconds with SIGKILL.

    Returns
    -------
    int
        The number of processes that were ended.
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
    """Return the running processes: the started ones and, where environments can be read (Linux), the marked ones."""
    return {process.pid for process in processes if process.alive} | _marked(folder)


def _marked(folder: Path) -> set[int]:
    marked = {
        process.pid for process in psutil.process_iter() if _environment(process).get(MARK) == str(folder)
    }
    return marked - {os.getpid()}


def _environment(process: psutil.Process) -> Mapping[str, str]:
    """Return a process's initial environment, empty if it has ended or belongs to another user."""
    with suppress(psutil.Error):
        if process.status() != psutil.STATUS_ZOMBIE:
            environment: dict[str, str] = process.environ()
            return environment
    return {}


def started_at(pid: int) -> str | None:
    """Return a process's start time in seconds since the system's start, or ``None`` if it has ended."""
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            # A change of the system's clock moves both, but not their difference.
            return f"{process.create_time() - psutil.boot_time():.2f}"
    return None


def _signal(pid: int, signum: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signum)
