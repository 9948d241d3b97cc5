"""Progress of a study: a live table on a terminal, otherwise a line per run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, final

from rich.console import Console
from rich.table import Table

from fedpisa.runs.console import LiveTable, cell, plain_table, short
from fedpisa.runs.results import common_headline
from fedpisa.studies.comparison import by_seed, summary
from fedpisa.studies.workers import Progress

if TYPE_CHECKING:
    from fedpisa.studies.study import StudyResult, StudyRun

STYLES = {
    "running": "bold cyan",
    "stopping": "yellow",
    "finished": "green",
    "diverged": "red",
    "failed": "red",
    "interrupted": "yellow",
    "elsewhere": "magenta",
    "waiting": "dim",
}
"""Style of each state; if the terminal is too small for all runs, the first states have priority."""

AT_WORK = ("waiting", "running", "stopping")
"""States of unfinished runs."""


@final
class StudyConsole(LiveTable):
    """Show the state of all runs; pass it to ``fedpisa.compare`` as ``on_progress``.

    Parameters
    ----------
    runs
        The study's runs.
    console
        Output; standard error by default.

    Examples
    --------
    >>> study = fedpisa.read_study("study.toml")  # doctest: +SKIP
    >>> with StudyConsole(study.runs()) as console:  # doctest: +SKIP
    ...     fedpisa.compare(study, on_progress=console)
    """

    def __init__(self, runs: Sequence[StudyRun], console: Console | None = None) -> None:
        super().__init__(console)
        self._runs = runs
        self._stands = [Progress(number, "waiting") for number in range(len(runs))]

    def __call__(self, progress: Progress) -> None:
        """Show one change."""
        before = self._stands[progress.number]
        self._stands[progress.number] = progress
        if not self._on_screen() and before.state != progress.state and progress.state not in AT_WORK:
            ended = sum(stand.state not in AT_WORK for stand in self._stands)
            width = len(str(len(self._runs)))
            cells = ", ".join(filter(None, (progress.state, _rounds(progress), _value(progress))))
            text = f"[{ended:{width}}/{len(self._runs)}] {self._runs[progress.number]}: {cells}"
            self._say(f"{text} ({progress.message})" if progress.message else text)

    def _table(self) -> Table:
        """Return all runs, or as many as the terminal has room for, running ones first."""
        counted: Counter[str] = Counter(stand.state for stand in self._stands)
        caption = ", ".join(f"{counted[state]} {state}" for state in STYLES if counted[state])
        if counted["stopping"]:
            caption += " after this round; Ctrl-C again ends at once"
        keys = list(self._runs[0].point) if self._runs else []
        table = Table(box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left")
        names = {stand.measure.name for stand in self._stands if stand.value is not None}
        measured = (
            names.pop().removeprefix("test ") if len(names) == 1 else "accuracy" * (not names) or "measure"
        )
        for name in ("variant", *keys, "seed", "state", "round", measured):
            table.add_column(cell(name), justify="left" if name in ("variant", "state") else "right")
        room = max(self._console.size.height - 4, 3)
        order = list(STYLES)
        shown = sorted(self._stands, key=lambda stand: order.index(stand.state))[:room]
        for stand in sorted(shown, key=lambda stand: stand.number):
            run = self._runs[stand.number]
            style = STYLES[stand.state]
            table.add_row(
                cell(run.variant),
                *(cell(value) for value in run.point.values()),
                str(run.seed),
                f"[{style}]{stand.state}[/{style}]",
                "" if stand.state == "waiting" else str(stand.server_round),
                _value(stand),
            )
        return table


def _rounds(progress: Progress) -> str:
    return f"{progress.server_round} rounds" if progress.server_round else ""


def _value(progress: Progress) -> str:
    return "" if progress.value is None else short(progress.measure, progress.value)


def table(results: Sequence[StudyResult]) -> Table:
    """Return the results of a study, a row per variant and point: means and deviations over the seeds."""
    rows = summary(results).to_dict("records")
    measure = common_headline(one.result for one in results)
    column, form = measure.column, ".1%" if measure.percent else ".4g"
    keys = list(results[0].point) if results else []
    targets = {target for one in results if (target := one.result.target)}
    titles = {"final": f"final {column.removeprefix('test_')}", "selected": "best by validation"}
    titles["best"] = "best by test (optimistic)"
    shown = {
        f"{name}_{column}": title
        for name, title in titles.items()
        if rows and f"{name}_{column}_mean" in rows[0]
    }
    view = plain_table("variant", *keys, "runs", *shown.values())
    early = bool(rows) and "rounds_mean" in rows[0]
    if early:
        view.add_column("rounds", justify="right")
    timed = bool(targets)
    if timed:
        title = "rounds to target" if len(targets) > 1 else _to_target(results, *targets.pop())
        view.add_column(title, justify="right")
    both = sorted(
        zip(by_seed(results), rows, strict=True), key=lambda pair: bool(pair[0][0].result.reference)
    )
    for group, row in both:
        runs = str(row["runs"]) if row["runs"] == row["finished"] else f"{row['finished']} of {row['runs']}"
        cells = [runs, *(_mean(row, name, form) for name in shown)]
        if early:
            cells.append(_mean(row, "rounds", ".0f"))
        if timed:
            reached = "never" if not row["reached"] else _mean(row, "rounds_to_target", ".0f")
            missed = row["reached"] and row["reached"] < row["finished"]
            cells.append(f"{reached} ({row['reached']} of {row['finished']})" if missed else reached)
        prefix = "reference: " if group[0].result.reference else ""
        view.add_row(cell(prefix + group[0].variant), *(cell(group[0].point[key]) for key in keys), *cells)
    shares = {row["majority_share"] for row in rows if row.get("majority_share", math.nan) > 0}
    if column == "test_accuracy" and shares:
        text = " to ".join(f"{share:.1%}" for share in sorted({min(shares), max(shares)}))
        view.caption, view.caption_justify = f"{text} is the majority class", "left"
    return view


def _to_target(results: Sequence[StudyResult], column: str, value: float) -> str:
    """Return the title of the column with the rounds to a target."""
    measure = results[0].result.measure(column)
    if measure.percent:
        return f"rounds to {value:.0%}"
    same = measure.column == common_headline(one.result for one in results).column
    return f"rounds to {'' if same else measure.name + ' '}{value:.4g}"


def _mean(row: dict[Any, Any], name: str, form: str) -> str:
    """Return ``mean ± deviation``, the mean alone for one run, and a dash for none."""
    mean, deviation = row[f"{name}_mean"], row[f"{name}_std"]
    if math.isnan(mean):
        return "-"
    return f"{mean:{form}}" if math.isnan(deviation) else f"{mean:{form}} ± {deviation:{form}}"
