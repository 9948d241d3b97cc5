"""Run a tuning: claim, train and store trials, in one process or several."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import final

from fedpisa.components import one_line
from fedpisa.runs.process import own_process
from fedpisa.runs.run_files import Row
from fedpisa.runs.signals import Interrupted, postponed
from fedpisa.studies.pool import Pool, Worker, become_worker
from fedpisa.tuning.database import DatabaseError
from fedpisa.tuning.metric import Metric, measure
from fedpisa.tuning.plan import Plan, read_plan
from fedpisa.tuning.results import write_results
from fedpisa.tuning.standing import Standing, is_complete
from fedpisa.tuning.trial import State
from fedpisa.tuning.trials import Claim, Trials


@final
@dataclass(frozen=True)
class TrialProgress:
    """Progress of a trial.

    Parameters
    ----------
    subject
        Index of the subject in the plan.
    index
        Index of the trial in the subject's budget.
    state
        ``running``, or how the trial ended.
    rounds
        Completed rounds, over all seeds.
    metric
        Metric so far.
    message
        Reason of a failure.
    before
        Whether the trial ended before this call of `tune`, or before an extension.
    gradients
        Gradients of single samples so far, over all seeds.
    budget
        Number of the subject's trials.
    accuracy
        Mean accuracy on validation samples after the last round of each seed, if the trial finished and measured it.
    """

    subject: int
    index: int
    state: State
    rounds: int = 0
    metric: float | None = None
    message: str = ""
    before: bool = False
    gradients: int = 0
    budget: int = 0
    accuracy: float | None = None


def tune(
    study: Plan | str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    jobs: int = 1,
    extend: int = 0,
    on_progress: Callable[[TrialProgress], None] = lambda progress: None,
    allow: Iterable[str] = (),
) -> list[Standing]:
    """Search the best values of each variant at each point of a study, with the same number of trials for all.

    Write ``tune.db`` (Optuna's), ``trials.csv``, ``summary.csv`` and ``trials.png``, and after the last trial
    ``best/<variant>/<point>.toml`` for ``fedpisa run`` and ``best.toml`` for ``fedpisa compare``. After an
    interruption, the same call continues. Several processes may tune in the same directory.

    Parameters
    ----------
    study
        A plan, or the path of a study file with a table ``[tune]``.
    out
        The directory; ``tuned/<name of the file>`` by default.
    jobs
        Number of parallel processes. With one, the trials are reproducible. With more, the sampler ``tpe`` and the
        pruner depend on the order in which trials end.
    extend
        Number of extensions, at most. When all trials have ended and a best value lies at an edge, its space is
        widened, and every variant gets as many trials again. A directory keeps its extensions.
    on_progress
        Called on each progress of a trial.
    allow
        Modules that the file may name, besides those in its folder and in the current one.

    Returns
    -------
    list of Standing
        Outcome of each subject, in the study's order.

    Raises
    ------
    ValueError
        If the plan is invalid, Optuna is not installed, or the directory has trials of another plan.
    KeyboardInterrupt
        After Ctrl-C or SIGTERM, at the end of the current round. The next call restarts the running trials.
    """
    plan = study if isinstance(study, Plan) else read_plan(study, allow=allow)
    directory = Path("tuned") / plan.study.folder if out is None else Path(out)
    with Trials(plan, directory) as trials:
        while True:
            _tell_ended(trials, on_progress)
            if jobs == 1:
                signum = _work(trials, on_progress, _announce)
            else:
                signum = None
                # If a worker dies, its trial starts again, up to `ATTEMPTS` times.
                while signum is None and (left := _left(trials)):
                    trials.disconnect()
                    signum = _share_out(plan, directory, min(jobs, left), on_progress)
            # The last process to end sees all trials, so it writes the complete outcome.
            with trials.standing_still() as found:
                now = trials.plan
                standings = list(map(Standing.of, repeat(now), now.subjects, found))
                write_results(now, standings, directory)
            complete = is_complete(now, standings)
            if signum is not None and not complete:
                raise Interrupted(signum)
            at_edge = any(one.edges for one in standings)
            if not (complete and at_edge and now.extensions < extend) or signum is not None:
                return standings
            trials.widen(now.extensions, [{edge.key: edge.wider for edge in one.edges} for one in standings])


def _tell_ended(trials: Trials, tell: Callable[[TrialProgress], None]) -> None:
    for number, subject in enumerate(trials.plan.subjects):
        budget = trials.plan.budget(subject)
        for one in trials.of(subject):
            if one.state != "running":
                state = TrialProgress(number, one.index, one.state, one.rounds, one.metric, one.error, True)
                tell(replace(state, gradients=one.gradients or 0, budget=budget))


def _left(trials: Trials) -> int:
    """Return the number of trials that no process has claimed."""
    return sum(trials.plan.budget(subject) - len(trials.of(subject)) for subject in trials.plan.subjects)


def training(plan: Plan, claim: Claim, number: int = 0) -> Iterator[TrialProgress]:
    """Train a trial, seed by seed, and yield its progress after each round; an error ends it as failed.

    At a rung, the metric is the mean over the completed seeds and the current one.
    """
    from fedpisa.runs.simulation import Simulation
    from fedpisa.tuning.cost import sample_gradients

    seed_metrics, rounds, gradients, metric = list[float](), 0, 0, None
    accuracies = list[float | None]()
    rungs = deque(plan.settings.rungs(plan.rounds(claim.subject)))

    def now(state: State, message: str = "") -> TrialProgress:
        return TrialProgress(
            number, claim.index, state, rounds, metric, message, False, gradients, plan.budget(claim.subject)
        )

    yield now("running")
    try:
        for seed in plan.settings.seeds:
            config = claim.subject.config(claim.keys, seed)
            simulation, rows, last = Simulation(config), list[Row](), None
            of_run = config.target_of(plan.metric.column)
            target = None if of_run is None else of_run[1]
            for row in simulation.rows():
                rows.append(row)
                gradients += sample_gradients(simulation, row)
                if simulation.diverged:
                    rounds, metric = rounds + bool(row["round"]), plan.metric.worst
                    yield now("diverged")
                    return
                last = measure(plan.metric, rows, config.num_server_rounds, target)
                if not row["round"] or last is None:
                    rounds += bool(row["round"])
                    continue
                rounds, metric = rounds + 1, fmean([*seed_metrics, last])
                if rungs and rounds >= rungs[0] and row.get(plan.metric.column) is not None:
                    rungs = deque(rung for rung in rungs if rung > rounds)
                    if claim.is_hopeless(rounds, metric):
                        yield now("pruned")
                        return
                yield now("running")
            if last is None:
                raise ValueError(f"{plan.metric} was not measured")
            seed_metrics.append(last)
            accuracies.append(
                measure(Metric.named("validation_accuracy"), rows, config.num_server_rounds, None)
            )
        measured = [accuracy for accuracy in accuracies if accuracy is not None]
        yield replace(now("finished"), accuracy=fmean(measured) if len(measured) == len(accuracies) else None)
    except DatabaseError:
        raise
    except Exception as error:  # any error ends this trial alone and is reported
        metric = None
        yield now("failed", f"{type(error).__name__}: {one_line(error)}")


def _work(
    trials: Trials, tell: Callable[[TrialProgress], None], announce: Callable[[int], None]
) -> int | None:
    """Train trials until none is left; return the signal that interrupted, if any."""
    from fedpisa.simulation.stacked.threads import one_thread

    with one_thread(), postponed(announce) as stop:
        while stop.signum is None and (claim := trials.claim()) is not None:
            began = time.perf_counter()
            try:
                plan = trials.plan
                for progress in training(plan, claim, plan.subjects.index(claim.subject)):
                    if progress.state != "running":
                        claim.end(
                            progress.state,
                            progress.metric,
                            progress.rounds,
                            time.perf_counter() - began,
                            progress.message,
                            progress.gradients,
                            progress.accuracy,
                        )
                    tell(progress)
                    if stop.signum is not None:
                        break
            finally:
                claim.give_up()
    return stop.signum


def _announce(signum: int) -> None:
    """Report a signal; write directly, because the signal handler may interrupt the console."""
    with suppress(OSError):  # the terminal may have been closed
        os.write(2, b"\nending this round; once more ends at once\n")


# ------------------------------------------------------------------------------------- several processes


def _share_out(plan: Plan, directory: Path, jobs: int, tell: Callable[[TrialProgress], None]) -> int | None:
    """Train in ``jobs`` processes until no trial is left; return the signal that interrupted, if any."""
    any_trial, codes = False, list[int | None]()
    pool = Pool(Worker)
    with pool.at_work(_announce):
        while len(pool.workers) < jobs and pool.signum is None:
            pool.begin(_be_worker, plan, directory)
        while pool.workers:
            for worker, message in pool.hear():
                if message is None:
                    codes.append(worker.process.exitcode)
                elif isinstance(message, str):
                    raise ValueError(message)
                else:
                    any_trial = True
                    tell(message)
    # Exit code 0: other processes had claimed all trials.
    if pool.signum is None and not any_trial and all(codes):
        raise ValueError(
            f"the processes of jobs ended with code {codes[0]} before they began a trial: take jobs = 1"
        )
    return pool.signum


@own_process()
def _be_worker(plan: Plan, directory: Path, pipe: Connection) -> None:
    """Train trials and send their progress, until none is left or the parent ends; send an error as text."""
    become_worker()

    def tell(progress: TrialProgress) -> None:
        try:
            pipe.send(progress)
        except OSError:
            signal.raise_signal(signal.SIGTERM)  # the parent has ended: stop after this round

    try:
        with Trials(plan, directory) as trials:
            _work(trials, tell, lambda signum: None)  # the parent reports it
    except (ValueError, OSError) as error:
        with suppress(OSError):
            pipe.send(one_line(error))
