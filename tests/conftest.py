"""Fixtures for all tests: small federations, and processes that are forked to save imports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedpisa.runs.signals import Interrupted
from fedpisa.studies import pool
from tests import algorithms

Start = Callable[..., int]


@pytest.fixture
def in_child() -> Iterator[Start]:
    """Return a function that forks a process group to do some work.

    The workers of ``jobs`` are forked too. The exit code is the work's result if that is an integer, and 0
    otherwise. Standard error goes to the file ``errors``.
    """
    groups = list[int]()

    def start(work: Callable[[], object], errors: Path | None = None) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.setsid()
                # Libraries that this process used before, such as Ray, may have set handlers.
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
    """Return a function that waits for a process and returns its exit code, negative for a signal."""
    return lambda child: os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def pytest_configure(config: pytest.Config) -> None:
    """Let SIGHUP end processes, also if the tests were started with ``nohup``, which has it ignored."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test by the cases, dtypes and engines that it requests and does not list."""
    marked = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    listed = {name for names in marked for name in (names.split(",") if isinstance(names, str) else names)}
    names = set(metafunc.fixturenames) - listed
    kinds: dict[str, list[Callable[[algorithms.Case], bool]]] = {
        "case": [],
        "exact_case": [algorithms.is_exact],
        "dual_case": [algorithms.has_duals],
        "exact_dual_case": [algorithms.has_duals, algorithms.is_exact],
    }
    for name, conditions in kinds.items():
        if name in names:
            chosen = [case for case in algorithms.cases() if all(condition(case) for condition in conditions)]
            metafunc.parametrize(name, chosen, ids=str)
    if "dtype" in names:
        metafunc.parametrize("dtype", list(algorithms.DTYPES))
    if "engine" in names:
        metafunc.parametrize("engine", ["loop", "vmap"])


@pytest.fixture
def lab() -> SimpleNamespace:
    """Return the helpers of `tests/algorithms.py`."""
    return SimpleNamespace(
        SIZES=algorithms.SIZES,
        Case=algorithms.Case,
        Federation=algorithms.Federation,
        blobs=algorithms.blobs,
        dtypes=algorithms.DTYPES,
        fill=algorithms.fill,
        make=algorithms.make,
        mlp=algorithms.mlp,
        relative=algorithms.relative,
        row_of=algorithms.row_of,
        split=algorithms.split,
    )
