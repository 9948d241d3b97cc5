"""Trials in SQLite, shared by all processes that tune in one directory.

Each subject is an Optuna study. A process claims a trial, with its index and its values, under the directory's lock.
The values depend only on the plan's seed, the subject, the index and the stored trials. Each process holds a lock until
it ends. If a trial is running and the lock of its process is free, the process died: the index is claimed again.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, final

from fedpisa import components
from fedpisa.rng import stream_key
from fedpisa.storage.files import LOCK, InUseError, locked, refuse_link
from fedpisa.tuning.metric import Metric, maximized
from fedpisa.tuning.plan import Plan, Subject

if TYPE_CHECKING:
    import optuna

DATABASE: Final = "tune.db"
WORKERS: Final = "workers"
ATTEMPTS: Final = 3
"""Attempts at a trial whose process dies; then the trial counts as failed."""
TIMEOUT: Final = 60
"""Seconds to wait for another process's write."""

State = Literal["running", "finished", "pruned", "diverged", "failed"]


@final
@dataclass(frozen=True)
class Trial:
    """One trial.

    Parameters
    ----------
    index
        Index in the subject's budget, from 0.
    keys
        Values of the searched keys.
    state
        ``running``, or how the trial ended.
    metric
        Metric at the end, or at the rung that pruned the trial; infinite if diverged, ``None`` if failed.
    rounds
        Trained rounds, over all seeds.
    seconds
        Duration.
    error
        Reason of a failure.
    """

    index: int
    keys: Mapping[str, object]
    state: State
    metric: float | None = None
    rounds: int = 0
    seconds: float = 0.0
    error: str = ""


@final
@dataclass
class Claim:
    """A trial that this process has claimed, with its values of the searched keys; see `Trials.claim`."""

    subject: Subject
    index: int
    keys: Mapping[str, object]
    _trial: optuna.Trial = field(repr=False)
    _ended: bool = field(default=False, repr=False)

    def is_hopeless(self, step: int, metric: float) -> bool:
        """Return whether to prune the trial at the rung that it has reached."""
        with _database_errors():
            self._trial.report(metric, step)
            return self._trial.should_prune()

    def end(self, state: State, metric: float | None, rounds: int, seconds: float, error: str) -> None:
        """Store how the trial ended; see `Trial` for the parameters."""
        from optuna.trial import TrialState

        text = None if metric is None else repr(metric)  # JSON has no infinity
        end = {"state": state, "metric": text, "rounds": rounds, "seconds": seconds, "error": error}
        stored = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED}.get(state, TrialState.COMPLETE)
        with _database_errors():
            self._ended = True
            self._trial.set_user_attr("end", end)
            self._trial.study.tell(
                self._trial, metric if stored == TrialState.COMPLETE else None, state=stored
            )

    def give_up(self) -> None:
        """Release the trial, unless it has ended."""
        from optuna.trial import TrialState

        with _database_errors():
            if not self._ended:
                self._trial.set_user_attr("given up", True)
                self._trial.study.tell(self._trial, state=TrialState.FAIL)


@final
class Trials:
    """The trials of a plan in a directory, within a ``with`` block.

    Parameters
    ----------
    plan
        The plan.
    directory
        Folder of ``tune.db``.

    Raises
    ------
    ValueError
        If Optuna is not installed, the database cannot be used, or it has trials of another plan.
    """

    def __init__(self, plan: Plan, directory: Path) -> None:
        try:
            import_module("optuna")
        except ModuleNotFoundError as error:
            raise ValueError("tuning needs the extra tune; run pip install 'fedpisa[tune]'") from error
        self._plan = plan
        self._directory = directory
        self._locks = ExitStack()
        self._me = directory / WORKERS / f"{os.getpid()}-{time.time_ns()}"
        with locked(directory, wait=True), _database_errors():
            self._studies = self._open()

    def __enter__(self) -> Trials:
        self._locks.enter_context(locked(self._me))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._locks.close()
        _forget(self._me)
        with suppress(OSError):  # not empty while other processes work
            self._me.parent.rmdir()

    def claim(self) -> Claim | None:
        """Claim a trial of the subject with the fewest; return ``None`` if all trials are claimed."""
        with locked(self._directory, wait=True), _database_errors():
            claimed = []
            for study in self._studies:
                self._fail_lost(study)
                claimed.append(set(self._latest(study)))
            number = min(range(len(claimed)), key=lambda n: len(claimed[n]))
            free = [index for index in range(self._plan.trials) if index not in claimed[number]]
            if not free:
                return None
            subject, study = self._plan.subjects[number], self._studies[number]
            trial = self._ask(study, subject, free[0])
            trial.set_user_attr("claim", {"index": free[0], "worker": self._me.name})
            values = {key: space.decoded(trial.params[key]) for key, space in subject.space.items()}
            return Claim(subject, free[0], values, trial)

    def of(self, subject: Subject) -> list[Trial]:
        """Return a subject's trials, ordered by index, without those whose process died."""
        with locked(self._directory, wait=True), _database_errors():
            return self._of(subject)

    @contextmanager
    def standing_still(self) -> Iterator[list[list[Trial]]]:
        """Yield the trials of all subjects; within the block, no other process claims a trial."""
        with locked(self._directory, wait=True):
            with _database_errors():
                found = [self._of(subject) for subject in self._plan.subjects]
            yield found

    def disconnect(self) -> None:
        """Close the connections, which a forked process must not inherit; the next use opens new ones."""
        self._engine.dispose()

    # -------------------------------------------------------------------------------------------- details

    def _of(self, subject: Subject) -> list[Trial]:
        study = self._studies[self._plan.subjects.index(subject)]
        self._fail_lost(study)
        latest = self._latest(study)
        return [_read(subject, index, latest[index]) for index in sorted(latest)]

    def _open(self) -> list[optuna.Study]:
        import optuna
        from sqlalchemy.pool import QueuePool

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = refuse_link(self._directory / DATABASE)
        storage = optuna.storages.RDBStorage(
            "sqlite://", engine_kwargs={"creator": partial(_connect, file), "poolclass": QueuePool}
        )
        directions = optuna.study.StudyDirection
        self._engine = storage.engine
        self._locks.callback(self.disconnect)
        direction = directions.MAXIMIZE if maximized(self._plan.metric) else directions.MINIMIZE
        studies = []
        for subject in self._plan.subjects:
            study = optuna.create_study(
                storage=storage,
                study_name=str(subject.path),
                direction=direction,
                pruner=self._pruner(subject),
                load_if_exists=True,
            )
            self._require_same(study, subject)
            studies.append(study)
        return studies

    def _require_same(self, study: optuna.Study, subject: Subject) -> None:
        now = dict(self._plan.fingerprint[subject.path])
        before = study.user_attrs.get("plan")
        if before is None:
            study.set_user_attr("plan", now)
            return
        different = [
            f"{key} was {before.get(key, 'not set')} and is now {now.get(key, 'not set')}"
            for key in before | now
            if before.get(key) != now.get(key)
        ]
        if different:
            raise ValueError(
                f"the trials of {subject} in {self._directory} are of another plan: {', '.join(different)}: restore "
                "the plan, or give another directory with --out"
            )
        if extra := [index for index in self._latest(study) if index >= self._plan.trials]:
            raise ValueError(
                f"{self._directory} has {max(extra) + 1} trials of {subject}, more than trials = {self._plan.trials}: "
                "trials can only grow"
            )

    def _pruner(self, subject: Subject) -> optuna.pruners.BasePruner:
        import optuna

        rungs = self._plan.settings.rungs(self._plan.rounds(subject))
        if not rungs:
            return optuna.pruners.NopPruner()
        return optuna.pruners.SuccessiveHalvingPruner(
            min_resource=rungs[0], reduction_factor=self._plan.settings.reduction_factor
        )

    def _ask(self, study: optuna.Study, subject: Subject, index: int) -> optuna.Trial:
        import optuna

        settings = self._plan.settings
        seed = stream_key(settings.seed, f"tune {subject.path}", index) % 2**32
        at_random = optuna.samplers.RandomSampler(seed)
        if settings.sampler == "grid":
            chosen = grid_point(subject.space, index)
            point = {key: [one.encoded(chosen[key])] for key, one in subject.space.items()}
            study.sampler = optuna.samplers.GridSampler(point)
        elif settings.sampler == "random":
            study.sampler = at_random
        else:
            startup = max(1, min(10, self._plan.trials // 3))
            study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        trial = study.ask({key: one.distribution() for key, one in subject.space.items()})
        study.sampler = at_random  # GridSampler would stop the study after its only point
        return trial

    def _fail_lost(self, study: optuna.Study) -> None:
        """Fail the running trials whose process died."""
        from optuna.trial import TrialState

        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            worker = trial.user_attrs.get("claim", {}).get("worker")
            if worker is None or not self._is_alive(worker):
                # The trial may have ended since it was read.
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _is_alive(self, worker: str) -> bool:
        path = self._directory / WORKERS / worker
        if path == self._me:
            return True
        if not path.exists():
            return False
        try:
            with locked(path):
                pass
        except InUseError:
            return True
        _forget(path)
        return False

    @staticmethod
    def _latest(study: optuna.Study) -> dict[int, optuna.trial.FrozenTrial]:
        """Return the valid trial of each index: skip those whose process died, up to `ATTEMPTS`."""
        found: dict[int, optuna.trial.FrozenTrial] = {}
        lost: dict[int, int] = {}
        for trial in study.get_trials(deepcopy=False):
            index = trial.user_attrs.get("claim", {}).get("index")
            if index is None or "given up" in trial.user_attrs:
                continue
            if trial.state.is_finished() and "end" not in trial.user_attrs:
                lost[index] = lost.get(index, 0) + 1
                if lost[index] < ATTEMPTS:
                    continue
            found[index] = trial
        return found


def grid_point(space: Mapping[str, Any], index: int) -> dict[str, object]:
    """Return a point of the grid; the last key varies fastest.

    Examples
    --------
    >>> from fedpisa.tuning.space import Choices
    >>> grid_point({"a": Choices((1, 2)), "b": Choices(("x", "y"))}, 2)
    {'a': 2, 'b': 'x'}
    """
    points: Sequence[tuple[object, ...]] = list(product(*(one.grid() for one in space.values())))
    return dict(zip(space, points[index], strict=True))


def _read(subject: Subject, index: int, found: optuna.trial.FrozenTrial) -> Trial:
    values = {key: space.decoded(found.params[key]) for key, space in subject.space.items()}
    if not found.state.is_finished():
        return Trial(index, values, "running")
    end = found.user_attrs.get("end")
    if end is None:
        return Trial(index, values, "failed", error=f"its process ended {ATTEMPTS} times")
    metric = None if end["metric"] is None else float(end["metric"])
    return Trial(index, values, end["state"], metric, end["rounds"], end["seconds"], end["error"])


def _connect(file: Path) -> sqlite3.Connection:
    """Open the database with write-ahead logging; a power cut can lose the last trials only."""
    connection = sqlite3.connect(file, timeout=TIMEOUT, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


def _forget(worker: Path) -> None:
    """Remove a worker's folder; a leftover is harmless."""
    with suppress(OSError):
        (worker / LOCK).unlink(missing_ok=True)
        worker.rmdir()


@contextmanager
def _database_errors() -> Iterator[None]:
    """Raise database errors, such as a full disk, as errors in one line."""
    import sqlalchemy.exc
    from optuna.exceptions import StorageInternalError

    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.DatabaseError) as error:
        cause = error.__cause__ or error
        reason = components.one_line(getattr(cause, "orig", None) or cause)
        raise DatabaseError(f"{DATABASE} cannot be used: {reason}") from error


@final
class DatabaseError(ValueError):
    """An error in reading or writing the trials."""


def best_of(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the best finished trial, the first of equals, or ``None`` if no trial finished."""
    ended = [trial for trial in trials if trial.state == "finished" and trial.metric is not None]
    sign = -1 if maximized(metric) else 1
    return min(ended, key=lambda trial: (sign * (trial.metric or 0), trial.index), default=None)
