"""Progress of a tuning: a live table on a terminal, otherwise a line per trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from rich.console import Console
from rich.table import Table

from fedpisa import components
from fedpisa.runs.console import LiveTable, cell, plain_table
from fedpisa.tuning.metric import Metric, maximized
from fedpisa.tuning.plan import Plan, Subject
from fedpisa.tuning.space import Range
from fedpisa.tuning.trials import Trial
from fedpisa.tuning.tune import Standing, TrialProgress

EDGE: Final = 0.02
"""Distance to an end of a range, as a fraction of the range, within which a value is at the end."""


@final
class TuneConsole(LiveTable):
    """Show the state of all trials; pass it to ``fedpisa.tuning.tune`` as ``on_progress``.

    Parameters
    ----------
    plan
        The plan.
    console
        Output; standard error by default.

    Examples
    --------
    >>> plan = read_plan("study.toml")  # doctest: +SKIP
    >>> with TuneConsole(plan) as console:  # doctest: +SKIP
    ...     tune(plan, on_progress=console)
    """

    def __init__(self, plan: Plan, console: Console | None = None) -> None:
        super().__init__(console)
        self._plan = plan
        self._trials: list[dict[int, TrialProgress]] = [{} for _ in plan.subjects]

    def __call__(self, progress: TrialProgress) -> None:
        """Show one change."""
        self._trials[progress.subject][progress.index] = progress
        if not self._on_screen() and progress.state != "running" and not progress.before:
            ended = sum(one.state != "running" for trials in self._trials for one in trials.values())
            total = self._plan.trials * len(self._plan.subjects)
            reached = "" if progress.metric is None else f", {_shown(progress.metric, self._plan.metric)}"
            text = (
                f"[{ended:{len(str(total))}}/{total}] {self._plan.subjects[progress.subject]}: "
                f"trial {progress.index} {progress.state} after {progress.rounds} rounds{reached}"
            )
            self._say(f"{text} ({progress.message})" if progress.message else text)

    def _table(self) -> Table:
        keys = list(self._plan.study.sweep)
        table = plain_table("variant", *keys, "trials", "pruned", "diverged", "failed", "best")
        table.add_column("running")
        for subject, progress in zip(self._plan.subjects, self._trials, strict=True):
            trials = progress.values()
            states = [one.state for one in trials]
            ended = [one.metric for one in trials if one.state == "finished" and one.metric is not None]
            best = (max if maximized(self._plan.metric) else min)(ended, default=None)
            working = [f"{one.index}: round {one.rounds}" for one in trials if one.state == "running"]
            table.add_row(
                cell(subject.variant),
                *(cell(components.show(value)) for value in subject.point.values()),
                f"{len(states) - len(working)}/{self._plan.trials}",
                *(str(states.count(state) or "") for state in ("pruned", "diverged", "failed")),
                "" if best is None else _shown(best, self._plan.metric),
                ", ".join(working),
            )
        return table


def table(standings: Sequence[Standing], metric: Metric) -> Table:
    """Return the outcome, a row per variant and point: trials, rounds, and the best values."""
    keys = list(standings[0].subject.point) if standings else []
    view = plain_table("variant", *keys, "trials", "pruned", "rounds", metric.replace("_", " "))
    view.add_column("best values", overflow="fold")
    for one in standings:
        counts, best = one.counts, one.best
        view.add_row(
            cell(one.subject.variant),
            *(cell(components.show(value)) for value in one.subject.point.values()),
            str(len(one.trials) - counts["running"]),
            str(counts["pruned"]),
            f"{one.rounds:,}",
            "-" if best is None or best.metric is None else _shown(best.metric, metric),
            ""
            if best is None
            else cell(", ".join(f"{key}={_short(value)}" for key, value in best.keys.items())),
        )
    return view


def at_the_end(subject: Subject, best: Trial) -> list[str]:
    """Return the searched keys whose best value is at an end of its range.

    Examples
    --------
    >>> from pathlib import PurePosixPath
    >>> subject = Subject("a", {}, PurePosixPath("a"), {}, {"rho": Range(0.01, 1, log=True), "mu": Range(0, 1)})
    >>> at_the_end(subject, Trial(0, {"rho": 0.99, "mu": 0.5}, "finished"))
    ['rho']
    """
    found = []
    for key, space in subject.space.items():
        value = best.keys[key]
        if isinstance(space, Range) and isinstance(value, int | float):
            place = space.fraction(value)
            if min(place, 1 - place) <= EDGE:
                found.append(key)
    return found


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else components.show(value).strip("'")


def _shown(value: float, metric: Metric) -> str:
    return f"{value:.1%}" if maximized(metric) and value >= 0 else f"{value:.4g}"
