"""Competitors at the same jobs, in alternation, each time in a process of its own."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from tempfile import TemporaryFile
from typing import Any, final

from fedpisa.bench.memory import PeakMemory
from fedpisa.bench.protocol import MARK
from fedpisa.bench.workloads import ALGORITHMS, WORKLOADS, Algorithm, Job


@final
@dataclass(frozen=True)
class Competitor:
    """A command that does a job; see `fedpisa.bench.protocol`.

    Parameters
    ----------
    name
        What the table calls it.
    command
        The command, to which the job is appended.
    threads
        Threads of its numerical libraries.
    algorithms
        What it can run.
    on_the_fly
        Whether it can make samples when they are needed.
    most_rounds
        Of one that takes long, how many rounds are timed at most; one warms up.
    """

    name: str
    command: tuple[str, ...]
    threads: int
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    on_the_fly: bool = False
    most_rounds: int | None = None

    def takes(self, job: Job) -> bool:
        """Return whether it can do a job."""
        return job.algorithm in self.algorithms and (self.on_the_fly or not job.workload.on_the_fly)

    def share(self, job: Job) -> Job:
        """Return what it does of a job."""
        if self.most_rounds is None:
            return job
        return replace(job, rounds=min(job.rounds, self.most_rounds), warm_up=min(job.warm_up, 1))

    @property
    def environment(self) -> dict[str, str]:
        """The environment of its process."""
        wanted = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))
        return {**os.environ, **wanted}


@final
@dataclass(frozen=True)
class Measurement:
    """What one process measured.

    Parameters
    ----------
    competitor, workload, algorithm
        Who did what.
    seconds
        Of each timed round.
    evaluation
        Seconds of evaluation, which are in no round.
    startup
        Seconds from the start of the process to the end of its first round.
    resident, proportional
        Peak memory of the process and all that it started, in bytes; see `fedpisa.bench.memory.Memory`.
    error
        The last line of what it wrote if it failed.
    """

    competitor: str
    workload: str
    algorithm: str
    seconds: tuple[float, ...] = ()
    evaluation: float = 0.0
    startup: float = 0.0
    resident: int = 0
    proportional: int = 0
    error: str = ""


@final
@dataclass(frozen=True)
class Figure:
    """The measurements of one competitor at one job, summed up.

    ``seconds`` is the median over all timed rounds, ``low`` and ``high`` are the extreme medians of its processes,
    ``startup`` a median, ``resident`` and ``proportional`` are maxima.
    """

    competitor: str
    workload: str
    algorithm: str
    seconds: float
    low: float
    high: float
    startup: float
    resident: int
    proportional: int
    evaluation: float
    error: str = ""


def fedpisa(threads: int | None = None) -> Competitor:
    """Return this package as a competitor; by default with a thread for each core."""
    command = (sys.executable, "-m", "fedpisa.bench.engine")
    return Competitor("fedpisa", command, threads or cores(), on_the_fly=True)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs(
    names: Iterable[str] = (),
    algorithms: Iterable[Algorithm] = ALGORITHMS,
    rounds: int | None = None,
    warm_up: int = 3,
) -> list[Job]:
    """Return the jobs of workloads by name, by default of all of them.

    Raises
    ------
    ValueError
        If there is no such workload.

    Examples
    --------
    >>> [str(job.workload)[0] + " " + job.algorithm for job in jobs("AC", ["fedavg"])]
    ['A fedavg', 'C fedavg']
    """
    wanted = [*names] or [*WORKLOADS]
    for name in wanted:
        if name not in WORKLOADS:
            raise ValueError(f"there is no workload {name!r}: take some of {', '.join(WORKLOADS)}")
    return [
        Job(WORKLOADS[name], algorithm, rounds or WORKLOADS[name].rounds, warm_up)
        for name in wanted
        for algorithm in algorithms
    ]


def alternate(competitors: Sequence[Competitor], jobs: Sequence[Job], repeats: int) -> Iterator[Measurement]:
    """Measure every competitor at every job, ``repeats`` times, and never one twice in a row where there are two.

    What the machine does besides, which changes in minutes, thus falls on all of them.
    """
    for _ in range(repeats):
        for job in jobs:
            for competitor in competitors:
                if competitor.takes(job):
                    yield measure(competitor, job)


def measure(competitor: Competitor, job: Job) -> Measurement:
    """Have a job done in a process of its own."""
    begin, first = time.perf_counter(), 0.0
    told: dict[str, Any] = {}
    command = [*competitor.command, competitor.share(job).to_json()]
    with (
        TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=competitor.environment
        ) as process,
        PeakMemory(process.pid) as memory,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(MARK):
                first = first or time.perf_counter() - begin
                told |= json.loads(line.removeprefix(MARK))
        code = process.wait()
        errors.seek(0)
        complaints = errors.read().split("\n")
    name = (competitor.name, job.workload.name, job.algorithm)
    if code or "seconds" not in told:
        last = next((line.strip() for line in reversed(complaints) if line.strip()), "it said nothing")
        return Measurement(*name, error=f"exit code {code}: {last}")
    # What a process had for a moment between two looks, it knows itself.
    resident = max(memory.peak.resident, told["peak"])
    proportional = memory.peak.proportional
    return Measurement(*name, tuple(told["seconds"]), told["evaluation"], first, resident, proportional)


def summary(measurements: Iterable[Measurement]) -> list[Figure]:
    """Return a figure for every competitor and job, in the order in which they came.

    Examples
    --------
    >>> runs = [Measurement("x", "A", "fedavg", seconds) for seconds in ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))]
    >>> figure = summary(runs)[0]
    >>> figure.seconds, figure.low, figure.high
    (3.5, 2.0, 5.0)
    """
    by_name: dict[tuple[str, str, str], list[Measurement]] = {}
    for one in measurements:
        by_name.setdefault((one.competitor, one.workload, one.algorithm), []).append(one)
    figures = []
    for name, ones in by_name.items():
        good = [one for one in ones if not one.error]
        if not good:
            nan = float("nan")
            figures.append(Figure(*name, nan, nan, nan, nan, 0, 0, nan, ones[-1].error))
            continue
        medians = [statistics.median(one.seconds) for one in good]
        figures.append(
            Figure(
                *name,
                seconds=statistics.median(second for one in good for second in one.seconds),
                low=min(medians),
                high=max(medians),
                startup=statistics.median(one.startup for one in good),
                resident=max(one.resident for one in good),
                proportional=max(one.proportional for one in good),
                evaluation=statistics.median(one.evaluation for one in good),
            )
        )
    return figures
