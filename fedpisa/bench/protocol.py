"""What a measured process says on its standard output: a line when a round ends, and at the end what it measured.

A competitor's loop is a generator of rounds; `report` times it. It needs Python's library alone.
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
"""Before each of our lines: libraries print lines of their own."""


def say(**fields: object) -> None:
    """Print one line of the protocol."""
    print(MARK + json.dumps(fields), flush=True)


def report(job: Job, rounds: Iterable[object], seconds_apart: Iterable[float] = ()) -> None:
    """Time the rounds of a job, one after the other, and say so.

    Parameters
    ----------
    job
        How many of them warm up, and how many are timed.
    rounds
        Does a round whenever it is asked for the next item.
    seconds_apart
        Seconds of evaluation, which are no part of a round; asked for at the end.
    """
    seconds: list[float] = []
    done = iter(rounds)
    for number in range(job.warm_up + job.rounds):
        begin = time.perf_counter()
        next(done)
        seconds.append(time.perf_counter() - begin)
        say(round=number + 1)
    finish(job, seconds, seconds_apart)


def finish(job: Job, seconds: list[float], seconds_apart: Iterable[float] = ()) -> None:
    """Say what was measured: the seconds of every round, those of the warm-up among them."""
    say(seconds=seconds[job.warm_up :], evaluation=sum(seconds_apart), peak=own_peak())


def job() -> Job:
    """Return the job of this process, its first argument."""
    return Job.from_json(sys.argv[1])
