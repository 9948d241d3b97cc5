"""Processes for tests: forked, because importing everything anew would take seconds."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fedpisa.runs.signals import Interrupted
from fedpisa.studies import pool

Start = Callable[..., int]


@pytest.fixture
def in_child() -> Iterator[Start]:
    """Return what forks a process group that does some work, the workers of ``jobs`` forked, too.

    Its exit code is what the work returns, 0 for nothing; ``errors`` is the file of its standard error.
    """
    groups = list[int]()

    def start(work: Callable[[], object], errors: Path | None = None) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                # Libraries that ran in this process before, such as Ray, leave handlers behind.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.default_int_handler)
                pool.CONTEXT = multiprocessing.get_context("fork")
                if errors is not None:
                    sys.stderr = errors.open("w", buffering=1)
                    os.dup2(sys.stderr.fileno(), 2)
                result = work()
                code = result if isinstance(result, int) else 0
            except Interrupted as error:
                code = 128 + error.signum
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        groups.append(child)
        return child

    yield start
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.fixture
def ended() -> Callable[[int], int]:
    """Return what waits for a process and gives its exit code, negative for a signal."""
    return lambda child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
