"""Protocol of a measured process: it prints a line after every round and its measurements at the end.

A competitor's loop is a generator of rounds, which `report` times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from typing import Final

from fedpisa.bench.memory import own_peak
from fedpisa.bench.workloads import Job

MARK: Final = "fedpisa-bench "
"""Prefix of every line of the protocol; libraries print other lines."""


def send(**fields: object) -> None:
    """Print one line of the protocol."""
    print(MARK + json.dumps(fields), flush=True)


def report(job: Job, rounds: Iterable[object], seconds_apart: Iterable[float] = ()) -> None:
    """Time the rounds of a job and print the measurements.

    Parameters
    ----------
    job
        The job; it sets the numbers of warm-up and timed rounds.
    rounds
        Iterable that runs one round per item.
    seconds_apart
        Seconds of evaluation, which rounds exclude; read after the last round.
    """
    seconds: list[float] = []
    iterator = iter(rounds)
    for number in range(job.warm_up + job.rounds):
        begin = time.perf_counter()
        next(iterator)
        seconds.append(time.perf_counter() - begin)
        send(round=number + 1)
    finish(job, seconds, seconds_apart)


def finish(job: Job, seconds: list[float], seconds_apart: Iterable[float] = ()) -> None:
    """Print the seconds of the timed rounds, the seconds of evaluation and the peak memory.

    ``seconds`` includes the warm-up rounds.
    """
    send(seconds=seconds[job.warm_up :], evaluation=sum(seconds_apart), peak=own_peak())


def job() -> Job:
    """Return the job given by the first argument of this process."""
    return Job.from_json(sys.argv[1])
