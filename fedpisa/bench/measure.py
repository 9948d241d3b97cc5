"""Measure competitors at the same jobs, in turn, each measurement in a new process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median
from tempfile import TemporaryFile
from typing import Any, final

from fedpisa.bench.memory import PeakMemory
from fedpisa.bench.protocol import MARK
from fedpisa.bench.workloads import ALGORITHMS, WORKLOADS, Algorithm, Job


@final
@dataclass(frozen=True)
class Competitor:
    """A command that runs a job; see `fedpisa.bench.protocol`.

    Parameters
    ----------
    name
        Name in the table.
    command
        The command, to which the job is appended.
    threads
        Threads of the numerical libraries.
    algorithms
        Algorithms that the command can run.
    on_the_fly
        Whether the command can make samples when they are needed.
    models
        Models that the command has; ``None`` for all.
    most_rounds
        Largest number of timed rounds of a slow competitor, after one warm-up round; by default the job's.
    """

    name: str
    command: tuple[str, ...]
    threads: int
    algorithms: tuple[Algorithm, ...] = ALGORITHMS
    on_the_fly: bool = False
    models: tuple[str, ...] | None = None
    most_rounds: int | None = None

    def takes(self, job: Job) -> bool:
        """Return whether the competitor can run a job."""
        has_model = self.models is None or job.workload.model in self.models
        return (
            has_model
            and job.algorithm in self.algorithms
            and (self.on_the_fly or not job.workload.on_the_fly)
        )

    def share(self, job: Job) -> Job:
        """Return a job with at most ``most_rounds`` rounds."""
        if self.most_rounds is None:
            return job
        return replace(job, rounds=min(job.rounds, self.most_rounds), warm_up=min(job.warm_up, 1))

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of the process."""
        return {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(self.threads))}


@final
@dataclass(frozen=True)
class Measurement:
    """The measurements of one process.

    Parameters
    ----------
    competitor, workload, algorithm
        Names of the competitor, the workload and the algorithm.
    seconds
        Seconds of each timed round.
    evaluation
        Seconds of evaluation, which the rounds exclude.
    startup
        Seconds from the start of the process to the end of its first round.
    resident, proportional
        Peak memory of the process and its descendants, in bytes; see `fedpisa.bench.memory.Memory`.
    error
        Exit code and last line of the error output if the process failed.
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
    """The summary of a competitor's measurements at one job.

    ``seconds`` is the median over all timed rounds. ``low`` and ``high`` are the smallest and the largest median of a
    process. ``startup`` and ``evaluation`` are medians, ``resident`` and ``proportional`` maxima over the processes.
    """

    competitor: str
    workload: str
    algorithm: str
    seconds: float = math.nan
    low: float = math.nan
    high: float = math.nan
    startup: float = math.nan
    resident: int = 0
    proportional: int = 0
    evaluation: float = math.nan
    error: str = ""


def fedpisa(threads: int | None = None) -> Competitor:
    """Return this package as a competitor, by default with a thread for each core."""
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
    """Return the jobs of workloads by name, by default of all workloads.

    Raises
    ------
    ValueError
        If a name is unknown.

    Examples
    --------
    >>> [str(job.workload)[0] + " " + job.algorithm for job in jobs("AC", ["fedavg"])]
    ['A fedavg', 'C fedavg']
    """
    names = [*names] or [*WORKLOADS]
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"there is no workload {name!r}: choose from {', '.join(WORKLOADS)}")
    return [
        Job(WORKLOADS[name], algorithm, rounds or WORKLOADS[name].rounds, warm_up)
        for name in names
        for algorithm in algorithms
    ]


def alternate(competitors: Sequence[Competitor], jobs: Sequence[Job], repeats: int) -> Iterator[Measurement]:
    """Measure every competitor at every job ``repeats`` times, the competitors in turn.

    Other load on the machine, which changes within minutes, then affects all competitors. Jobs that lack an extra are
    left out; see `lacking`.
    """
    able = [job for job in jobs if not job.workload.missing]
    for _ in range(repeats):
        for job in able:
            for competitor in competitors:
                if competitor.takes(job):
                    yield measure(competitor, job)


def lacking(jobs: Iterable[Job]) -> list[str]:
    """Return why workloads of jobs are left out, a line for each."""
    return list(dict.fromkeys(job.workload.missing for job in jobs if job.workload.missing))


def measure(competitor: Competitor, job: Job) -> Measurement:
    """Run a job in a new process and return its measurements."""
    begin, startup = time.perf_counter(), 0.0
    fields: dict[str, Any] = {}
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
                startup = startup or time.perf_counter() - begin
                fields |= json.loads(line.removeprefix(MARK))
        code = process.wait()
        errors.seek(0)
        error_lines = errors.read().split("\n")
    name = (competitor.name, job.workload.name, job.algorithm)
    if code or "seconds" not in fields:
        last = next((line.strip() for line in reversed(error_lines) if line.strip()), "no error output")
        return Measurement(*name, error=f"exit code {code}: {last}")
    # The process's own peak includes short peaks between two samples.
    resident = max(memory.peak.resident, fields["peak"])
    proportional = memory.peak.proportional
    return Measurement(*name, tuple(fields["seconds"]), fields["evaluation"], startup, resident, proportional)


def summary(measurements: Iterable[Measurement]) -> list[Figure]:
    """Return a figure for every competitor and job, in the order of their first measurement.

    Examples
    --------
    >>> runs = [Measurement("x", "A", "fedavg", seconds) for seconds in ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0))]
    >>> figure = summary(runs)[0]
    >>> figure.seconds, figure.low, figure.high
    (3.5, 2.0, 5.0)
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for m in measurements:
        groups.setdefault((m.competitor, m.workload, m.algorithm), []).append(m)
    return [_figure(name, group) for name, group in groups.items()]


def _figure(name: tuple[str, str, str], measurements: list[Measurement]) -> Figure:
    good = [m for m in measurements if not m.error]
    if not good:
        return Figure(*name, error=measurements[-1].error)
    medians = [median(m.seconds) for m in good]
    return Figure(
        *name,
        seconds=median(second for m in good for second in m.seconds),
        low=min(medians),
        high=max(medians),
        startup=median(m.startup for m in good),
        resident=max(m.resident for m in good),
        proportional=max(m.proportional for m in good),
        evaluation=median(m.evaluation for m in good),
    )
