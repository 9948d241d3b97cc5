"""Run the tasks of a study, one by one or in several processes."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, final

from fedpisa.components import one_line
from fedpisa.config.run import RunConfig
from fedpisa.families import Permission, permitted
from fedpisa.runs.events import Event, RoundFinished, RunStarted, Stopping
from fedpisa.runs.process import own_process
from fedpisa.runs.results import Result, load_result
from fedpisa.runs.run_files import RunReader
from fedpisa.storage.files import InUseError, OccupiedError
from fedpisa.studies.pool import Pool, Worker, become_worker
from fedpisa.tasks.measures import ACCURACY, Measure

State = Literal[
    "waiting", "running", "stopping", "finished", "diverged", "failed", "interrupted", "elsewhere"
]


@final
@dataclass(frozen=True)
class Task:
    """A run of a study: its index in the study, its keys, its directory and the modules that the keys may name."""

    number: int
    keys: Mapping[str, object]
    path: str
    permission: Permission | None = None


@final
@dataclass(frozen=True)
class Progress:
    """Progress of a run of a study.

    Parameters
    ----------
    number
        Index of the run in the study, from 0.
    state
        ``stopping``: ends after its round; ``elsewhere``: another process is running it.
    server_round
        Last completed round.
    measure, value
        The headline on the test set, and its last value.
    message
        Reason of a failure.
    signum
        Signal that interrupted the run.
    """

    number: int
    state: State
    server_round: int = 0
    measure: Measure = ACCURACY.of("test")
    value: float | None = None
    message: str = ""
    signum: int | None = None


def standing(task: Task) -> Progress:
    """Return the initial state of a task: ended, ``failed`` if its run cannot be read, or ``waiting``."""
    path = Path(task.path)
    try:
        reader = RunReader(path)
        if reader.status in ("finished", "diverged"):
            rounds = reader.config().num_server_rounds
            wanted = RunConfig.from_mapping(task.keys, stored=True).num_server_rounds
            if reader.status == "diverged" or rounds >= wanted:
                return _ended(task.number, load_result(path))
    except ValueError as error:
        return Progress(task.number, "failed", message=one_line(error))
    return Progress(task.number, "waiting")


def run_task(task: Task, tell: Callable[[Progress], None]) -> Progress:
    """Start or resume a run, and return its final state; an error gives ``failed``."""
    stand = Progress(task.number, "running")

    def listen(event: Event) -> None:
        nonlocal stand
        if isinstance(event, RunStarted):
            stand = replace(
                stand, server_round=event.resumed or 0, measure=event.measures[0].of("test"), value=None
            )
        elif isinstance(event, RoundFinished):
            reached = event.row.get(stand.measure.column)
            value = stand.value if reached is None else float(reached)
            stand = replace(stand, server_round=int(event.row["round"] or 0), value=value)
        elif isinstance(event, Stopping):
            stand = replace(stand, state="stopping")
        else:
            return
        tell(stand)

    try:
        with permitted(task.permission):
            config = RunConfig.from_mapping(task.keys)
        return _ended(task.number, _start_or_resume(config, Path(task.path), listen))
    except InUseError:
        return Progress(task.number, "elsewhere")
    except KeyboardInterrupt as error:
        signum: int = getattr(error, "signum", signal.SIGINT)
        return replace(stand, state="interrupted", signum=signum)
    except Exception as error:  # any error ends this run alone and is reported
        return replace(stand, state="failed", message=f"{type(error).__name__}: {one_line(error)}")


def _start_or_resume(config: RunConfig, path: Path, listen: Callable[[Event], None]) -> Result:
    from fedpisa.runs.runner import run

    if not (path / "config.toml").exists():
        # Another process may create the run after this check.
        with suppress(OccupiedError):
            return run(config, path, on_event=listen)
    return run(config, resume=path, on_event=listen)


def _ended(number: int, result: Result) -> Progress:
    states: Mapping[str, State] = {"finished": "finished", "diverged": "diverged"}
    state = states.get(result.status, "failed")
    message = "loss or parameters were no longer finite" if state == "diverged" else ""
    value = result.last(result.headline.column)
    return Progress(number, state, result.last_round, result.headline, value, message)


# ------------------------------------------------------------------------------------- several processes


@final
class _Worker(Worker):
    """A process that runs one task after the other.

    Parameters
    ----------
    note
        Called on each progress of its runs.
    """

    def __init__(self, note: Callable[[Progress], None]) -> None:
        super().__init__(_work)
        self.note = note
        self.task: Task | None = None
        self.stands: Progress | None = None

    def give(self, task: Task | None) -> None:
        """Send a task to the process; ``None`` ends it."""
        self.task = task
        self.stands = None if task is None else Progress(task.number, "running")
        with suppress(OSError):  # `hear` reports a process that has ended
            self.pipe.send(task)

    def stop(self) -> None:
        """Stop the process after its round and a checkpoint; a second call kills it."""
        ends_its_round = self.process.is_alive() and not self.told
        super().stop()
        if ends_its_round and self.stands is not None:
            self.note(replace(self.stands, state="stopping"))


def share_out(tasks: Sequence[Task], jobs: int, note: Callable[[Progress], None]) -> int | None:
    """Run tasks in parallel; return the signal that interrupted, if any.

    Parameters
    ----------
    tasks
        The runs.
    jobs
        Number of processes.
    note
        Called on each progress of a run.
    """
    waiting, pool = deque(tasks), Pool(_Worker)
    with pool.at_work():
        while pool.workers or (waiting and pool.signum is None):
            while waiting and len(pool.workers) < jobs and pool.signum is None:
                pool.begin(note).give(waiting.popleft())
            for worker, progress in pool.hear():
                _hear(worker, progress, pool, waiting)
    return pool.signum


def _hear(worker: _Worker, progress: Progress | None, pool: Pool[_Worker], waiting: deque[Task]) -> None:
    """Report a worker's progress, ``None`` if it has ended, and send its next task."""
    assert worker.task is not None
    if progress is None:
        message = f"its process ended with code {worker.process.exitcode}"
        state: State = "failed" if pool.signum is None else "interrupted"
        worker.note(Progress(worker.task.number, state, message=message if state == "failed" else ""))
        return
    worker.note(progress)
    if progress.state == "running":
        worker.stands = progress
    elif waiting and pool.signum is None:
        worker.give(waiting.popleft())
    else:
        worker.give(None)
        pool.release(worker)


@own_process()
def _work(pipe: Connection) -> None:
    """Run the tasks from the pipe, until ``None`` comes or the parent ends."""
    become_worker()
    import torch

    torch.set_num_threads(1)
    gone = False

    def tell(progress: Progress) -> None:
        nonlocal gone
        try:
            # The parent knows this state, and the signal handler may interrupt another message.
            if not gone and progress.state != "stopping":
                pipe.send(progress)
        except OSError:
            gone = True
            signal.raise_signal(signal.SIGTERM)  # the parent has ended: stop after this round

    with suppress(EOFError):
        while not gone and (task := pipe.recv()):
            tell(run_task(task, tell))
