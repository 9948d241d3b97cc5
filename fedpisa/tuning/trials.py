"""Trials in SQLite, shared by all processes that tune in one directory.

Each subject is an Optuna study, and another one after each extension. A process claims a trial, with its index and its
values, under the directory's lock. The values depend only on the plan's seed, the subject, the index and the stored
trials. Each process holds a lock until it ends. If a trial is running and the lock of its process is free, the process
died: the index is claimed again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, final

from fedpisa import components
from fedpisa.config.run import run_keys
from fedpisa.rng import stream_key
from fedpisa.storage.files import LOCK, InUseError, locked, refuse_link
from fedpisa.tuning.database import DATABASE, connect, database_errors
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.space import Space, read_stored_space, stored_space
from fedpisa.tuning.subject import Subject
from fedpisa.tuning.trial import Claimed, Ended, State, Trial

if TYPE_CHECKING:
    import optuna

WORKERS: Final = "workers"
ATTEMPTS: Final = 3
"""Attempts at a trial whose process dies; then the trial counts as failed."""


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
        with database_errors():
            self._trial.report(metric, step)
            return self._trial.should_prune()

    def end(
        self,
        state: State,
        metric: float | None,
        rounds: int,
        seconds: float,
        error: str = "",
        gradients: int = 0,
        accuracy: float | None = None,
    ) -> None:
        """Store how the trial ended; see `Trial` for the parameters."""
        from optuna.trial import TrialState

        text = None if metric is None else repr(metric)  # JSON has no infinity
        end = {"state": state, "metric": text, "rounds": rounds, "seconds": seconds}
        end |= {"error": error, "gradients": gradients, "accuracy": accuracy}
        stored = {"failed": TrialState.FAIL, "pruned": TrialState.PRUNED}.get(state, TrialState.COMPLETE)
        with database_errors():
            self._ended = True
            self._trial.set_user_attr("end", end)
            self._trial.study.tell(
                self._trial, metric if stored == TrialState.COMPLETE else None, state=stored
            )

    def give_up(self) -> None:
        """Release the trial, unless it has ended."""
        from optuna.trial import TrialState

        with database_errors():
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
        self._me = refuse_link(directory / WORKERS) / f"{os.getpid()}-{time.time_ns()}"
        with locked(directory, wait=True), database_errors():
            self._storage = self._open()
            # ``_first`` are the studies before any extension; those of the latest are in ``_studies``.
            self._first = self._studies = [self._study(subject) for subject in plan.subjects]
            for subject, study in zip(plan.subjects, self._first, strict=True):
                self._require_same(study, subject)
            self._follow()
            self._require_budget()

    @property
    def plan(self) -> Plan:
        """The plan, with all extensions in the directory."""
        return self._plan

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
        with locked(self._directory, wait=True), database_errors():
            self._follow()
            claimed, free = [], []
            for subject, study in zip(self._plan.subjects, self._studies, strict=True):
                self._fail_lost(study)
                claimed.append(set(self._latest(study)))
                free.append([n for n in range(self._plan.budget(subject)) if n not in claimed[-1]])
            if not any(free):
                return None
            number = min((n for n, own in enumerate(free) if own), key=lambda n: len(claimed[n]))
            subject, study, index = self._plan.subjects[number], self._studies[number], free[number][0]
            trial = self._ask(study, subject, index)
            trial.set_user_attr("claim", {"index": index, "worker": self._me.name})
            values = {key: space.decoded(trial.params[key]) for key, space in subject.space.items()}
            return Claim(subject, index, values, trial)

    def of(self, subject: Subject) -> list[Trial]:
        """Return a subject's trials, ordered by index, without those whose process died."""
        with locked(self._directory, wait=True), database_errors():
            return self._of(subject)

    @contextmanager
    def standing_still(self) -> Iterator[list[list[Trial]]]:
        """Yield the trials of all subjects; within the block, no other process claims a trial."""
        with locked(self._directory, wait=True):
            with database_errors():
                self._follow()
                found = [self._of(subject) for subject in self._plan.subjects]
            yield found

    def widen(self, extensions: int, spaces: Sequence[Mapping[str, Space]]) -> None:
        """Widen some search spaces of each subject, and keep its trials, unless another process did it.

        Parameters
        ----------
        extensions
            The number of extensions before this one.
        spaces
            The widened spaces of each subject.
        """
        import optuna

        with locked(self._directory, wait=True), database_errors():
            self._follow()
            if self._plan.extensions != extensions:
                return
            wider = self._plan.extended(spaces)
            names = {study.study_name for study in optuna.get_all_study_summaries(self._storage)}
            for subject, first, study in zip(wider.subjects, self._first, self._studies, strict=True):
                if _name(subject) in names:  # of a process that died here
                    optuna.delete_study(study_name=_name(subject), storage=self._storage)
                copy = self._study(subject)
                for trial in self._latest(study).values():
                    copy.add_trial(_copied(trial, subject))
                stored = [
                    {key: stored_space(one) for key, one in space.items()}
                    for space in (*subject.earlier[1:], subject.space)
                ]
                first.set_user_attr("extended", stored)
            self._first[0].set_user_attr("extensions", wider.extensions)
            self._follow()

    def disconnect(self) -> None:
        """Close the connections, which a forked process must not inherit; the next use opens new ones."""
        self._engine.dispose()

    # -------------------------------------------------------------------------------------------- details

    def _of(self, subject: Subject) -> list[Trial]:
        study = self._studies[self._plan.subjects.index(subject)]
        self._fail_lost(study)
        latest = self._latest(study)
        return [_read(subject, index, latest[index]) for index in sorted(latest)]

    def _open(self) -> optuna.storages.RDBStorage:
        import optuna
        from sqlalchemy.pool import QueuePool

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        file = refuse_link(self._directory / DATABASE)
        storage = optuna.storages.RDBStorage(
            "sqlite://", engine_kwargs={"creator": partial(connect, file), "poolclass": QueuePool}
        )
        self._engine = storage.engine
        self._locks.callback(self.disconnect)
        return storage

    def _study(self, subject: Subject) -> optuna.Study:
        import optuna

        directions = optuna.study.StudyDirection
        return optuna.create_study(
            storage=self._storage,
            study_name=_name(subject),
            direction=directions.MAXIMIZE if self._plan.metric.higher_is_better else directions.MINIMIZE,
            pruner=self._pruner(subject),
            load_if_exists=True,
        )

    def _follow(self) -> None:
        """Go on to the latest extension in the directory."""
        extensions = self._first[0].user_attrs.get("extensions", 0)
        if self._plan.extensions == extensions:
            return
        stored = [study.user_attrs["extended"] for study in self._first]
        for number in range(self._plan.extensions, extensions):
            spaces = [{key: read_stored_space(space) for key, space in own[number].items()} for own in stored]
            self._plan = self._plan.extended(spaces)
        self._studies = [self._study(subject) for subject in self._plan.subjects]

    def _require_same(self, study: optuna.Study, subject: Subject) -> None:
        now = dict(self._plan.fingerprint[subject.path])
        before = study.user_attrs.get("plan")
        if before is None:
            study.set_user_attr("plan", now)
            return
        # An earlier version may lack some of the run's keys.
        defaults = {name: components.show(key.default) for name, key in run_keys().items()}
        different = [
            f"{key} was {before.get(key, 'not set')} and is now {now.get(key, 'not set')}"
            for key in before | now
            if before.get(key, defaults.get(key)) != now.get(key)
        ]
        if different:
            raise ValueError(
                f"the trials of {subject} in {self._directory} are of another plan: {', '.join(different)}: restore "
                "the plan, or give another directory with --out"
            )

    def _require_budget(self) -> None:
        for subject, study in zip(self._plan.subjects, self._studies, strict=True):
            budget = self._plan.budget(subject)
            if extra := [index for index in self._latest(study) if index >= budget]:
                times = f" times {1 + self._plan.extensions}" if self._plan.extensions else ""
                raise ValueError(
                    f"{self._directory} has {max(extra) + 1} trials of {subject}, more than trials = "
                    f"{self._plan.trials}{times}: trials can only grow"
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
            chosen = subject.grid()[index]
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
            worker = Claimed.of(trial).worker
            if worker is None or not self._is_alive(worker):
                # The trial may have ended since it was read.
                study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)

    def _is_alive(self, worker: str) -> bool:
        path = refuse_link(self._directory / WORKERS / worker)
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
            index = Claimed.of(trial).index
            if index is None or "given up" in trial.user_attrs:
                continue
            if trial.state.is_finished() and "end" not in trial.user_attrs:
                lost[index] = lost.get(index, 0) + 1
                if lost[index] < ATTEMPTS:
                    continue
            found[index] = trial
        return found


def _name(subject: Subject) -> str:
    """Return the name of the subject's Optuna study."""
    return f"{subject.path} extension {len(subject.earlier)}" if subject.earlier else str(subject.path)


def _copied(trial: optuna.trial.FrozenTrial, subject: Subject) -> optuna.trial.FrozenTrial:
    """Return a trial as one of the subject's widened space, which contains its values."""
    from optuna.trial import create_trial

    return create_trial(
        state=trial.state,
        value=trial.value,
        params=trial.params,
        distributions={key: space.distribution() for key, space in subject.space.items()},
        user_attrs=trial.user_attrs,
        intermediate_values=trial.intermediate_values,
    )


def _read(subject: Subject, index: int, found: optuna.trial.FrozenTrial) -> Trial:
    values = {key: space.decoded(found.params[key]) for key, space in subject.space.items()}
    if not found.state.is_finished():
        return Trial(index, values, "running")
    if "end" not in found.user_attrs:
        return Trial(index, values, "failed", error=f"its process ended {ATTEMPTS} times")
    end = Ended.model_validate(found.user_attrs["end"])
    metric = None if end.metric is None else float(end.metric)
    early = found.intermediate_values
    return Trial(
        index,
        values,
        end.state,
        metric,
        end.rounds,
        end.seconds,
        end.error,
        end.gradients,
        early[min(early)] if early else None,
        end.accuracy,
    )


def _forget(worker: Path) -> None:
    """Remove a worker's folder; a leftover is harmless."""
    with suppress(OSError):
        (worker / LOCK).unlink(missing_ok=True)
        worker.rmdir()
