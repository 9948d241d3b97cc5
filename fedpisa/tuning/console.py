"""Progress of a tuning: a live table on a terminal, otherwise a line per trial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from rich.console import Console
from rich.table import Table

from fedpisa import components
from fedpisa.runs.console import LiveTable, cell, plain_table
from fedpisa.tuning.metric import Metric
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.standing import Standing
from fedpisa.tuning.tune import TrialProgress


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
        self._budgets = [plan.budget(subject) for subject in plan.subjects]

    def __call__(self, progress: TrialProgress) -> None:
        """Show one change."""
        self._trials[progress.subject][progress.index] = progress
        self._budgets[progress.subject] = progress.budget
        if not self._on_screen() and progress.state != "running" and not progress.before:
            ended = sum(one.state != "running" for trials in self._trials for one in trials.values())
            total = sum(self._budgets)
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
        for subject, progress, budget in zip(self._plan.subjects, self._trials, self._budgets, strict=True):
            trials = progress.values()
            states = [one.state for one in trials]
            ended = [one.metric for one in trials if one.state == "finished" and one.metric is not None]
            best = min(ended, key=self._plan.metric.rank, default=None)
            working = [f"{one.index}: round {one.rounds}" for one in trials if one.state == "running"]
            table.add_row(
                cell(subject.variant),
                *(cell(components.show(value)) for value in subject.point.values()),
                f"{len(states) - len(working)}/{budget}",
                *(str(states.count(state) or "") for state in ("pruned", "diverged", "failed")),
                "" if best is None else _shown(best, self._plan.metric),
                ", ".join(working),
            )
        return table


def table(standings: Sequence[Standing], metric: Metric) -> Table:
    """Return the outcome, a row per variant and point: what tuning cost, and what it found.

    ``median`` is the metric's median over the finished trials: what values at random reach.
    """
    keys = list(standings[0].subject.point) if standings else []
    counted = ("trials", "pruned", "rounds", "gradients", "seconds", "median")
    view = plain_table("variant", *keys, *counted, metric.name.replace("_", " "))
    for one in standings:
        counts, best = one.counts, one.best
        view.add_row(
            cell(one.subject.variant),
            *(cell(components.show(value)) for value in one.subject.point.values()),
            str(len(one.trials) - counts["running"]),
            str(counts["pruned"]),
            f"{one.rounds:,}",
            "-" if one.gradients is None else f"{one.gradients:.3g}",
            f"{one.seconds:.0f}",
            "-" if one.median is None else _shown(one.median, metric),
            "-" if best is None or best.metric is None else _shown(best.metric, metric),
        )
    return view


def best_values(standings: Sequence[Standing]) -> list[str]:
    """Return a line of best values per variant and point."""
    return [
        f"{one.subject}: {', '.join(f'{key} = {_short(value)}' for key, value in one.best.keys.items())}"
        for one in standings
        if one.best is not None
    ]


def remarks(plan: Plan, standings: Sequence[Standing]) -> list[str]:
    """Return what makes the outcome doubtful: a choice on the test set, values at an edge, and a misled pruner."""
    said = []
    if plan.metric.uses_test_set:
        said.append(
            f"the values are chosen on the test set, by metric = {plan.metric.name!r}: its results are optimistic"
        )
    for one in standings:
        for edge in one.edges:
            size = "smallest" if edge.side == "low" else "largest"
            said.append(
                f"{one.subject}: the best {edge.key}, {_short(edge.value)}, is among the {size} "
                f"tried: --extend {len(one.subject.earlier) + 1} widens its space"
            )
        pruned, (swapped, pairs) = one.counts["pruned"], one.swapped
        rungs = plan.settings.rungs(plan.rounds(one.subject))
        if one.misled:
            said.append(
                f"{one.subject}: {swapped} of {pairs} pairs of complete trials ended in another order than at round "
                f'{rungs[0]}, by which {pruned} trials were pruned: take pruner = "none"'
            )
        elif pruned and not pairs:
            said.append(
                f"{one.subject}: {pruned} trials were pruned, and too few are complete to check the ranking at round "
                f'{rungs[0]}: take pruner = "none"'
            )
    return said


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else components.show(value).strip("'")


def _shown(value: float, metric: Metric) -> str:
    return f"{value:.1%}" if metric.percent and value >= 0 else f"{value:.4g}"
