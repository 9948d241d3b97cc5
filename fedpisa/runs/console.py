"""Progress of commands: live on a terminal, a few plain lines elsewhere."""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Self, final

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedpisa.components import escaped
from fedpisa.runs.events import Event, RoundFinished, RunFinished, RunStarted, Stopping
from fedpisa.tasks.measures import ACCURACY, Measure

if TYPE_CHECKING:
    from fedpisa.runs.results import Result
    from fedpisa.runs.run_files import Row

PLAIN_LINES = 6
"""Number of rounds that are reported, besides the last, if the output is not a terminal."""


class Display:
    """Base of displays that are updated in place on a terminal.

    Parameters
    ----------
    console
        Console to write to; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._live: Live | Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def _say(self, text: str) -> None:
        """Write a line."""
        self._console.print(escaped(text), markup=False)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None


class LiveTable(Display, ABC):
    """A table that is updated in place on a terminal and not shown elsewhere."""

    @abstractmethod
    def _table(self) -> Table:
        """Return the current table."""

    def _on_screen(self) -> bool:
        """Return whether the table is shown; on a terminal, start to show it."""
        if self._console.is_terminal and self._live is None:
            self._live = Live(
                console=self._console, get_renderable=self._table, refresh_per_second=2, transient=True
            )
            self._live.start()
        return self._live is not None


@final
class RunConsole(Display):
    """Shows the events of runs; pass it to ``fedpisa.run`` as ``on_event``.

    Parameters
    ----------
    console
        Console to write to; standard error by default.
    clock
        Function that returns monotonic seconds.

    Examples
    --------
    >>> with RunConsole() as console:  # doctest: +SKIP
    ...     fedpisa.run({"algorithm": "sisa"}, on_event=console)
    """

    def __init__(
        self, console: Console | None = None, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        super().__init__(console)
        self._clock = clock
        self._task = TaskID(0)
        self._began = 0.0
        self._resumed = 0
        self._measure: Measure = ACCURACY.of("test")
        self._value: float | None = None

    def __call__(self, event: Event) -> None:
        """Show one event."""
        if isinstance(event, RunStarted):
            self._start(event)
        elif isinstance(event, RoundFinished):
            self._round(event.row, event.num_server_rounds)
        elif isinstance(event, RunFinished):
            self._stop()
            note = "; the run had already ended, nothing was done" if event.before else ""
            self._say(summary(event.result) + note)
        elif isinstance(event, Stopping):
            # A signal handler calls this while the console may be writing, so the text bypasses the console.
            with suppress(OSError):  # the terminal may have been closed
                os.write(2, b"\nending this round and writing a checkpoint; a second signal ends at once\n")

    def _start(self, event: RunStarted) -> None:
        self._stop()
        config, samples = event.config, f"{event.num_train:,} training"
        if event.num_validation:
            samples += f", {event.num_validation:,} validation"
        self._say(
            f"{config.algorithm} on {config.dataset}: {config.num_clients} clients by {config.partitioner}, "
            f"{samples} and {event.num_test:,} test samples, "
            f"{event.num_parameters:,} parameters, {event.engine} engine on {event.device}"
        )
        if event.privacy:
            self._say(event.privacy)
        if event.resumed is not None:
            self._say(f"resuming after round {event.resumed}")
        self._resumed = event.resumed or 0
        self._began = self._clock()
        self._measure, self._value = event.measures[0].of("test"), None
        if self._console.is_terminal:
            columns = (
                TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=10),
                TextColumn("{task.fields[metrics]}"),
                TextColumn("ETA"),
                TimeRemainingColumn(compact=True),
            )
            self._live = Progress(*columns, console=self._console, transient=True)
            total, completed = config.num_server_rounds, self._resumed
            self._task = self._live.add_task("", total=total, completed=completed, metrics="")
            self._live.start()

    def _round(self, row: Row, num_server_rounds: int) -> None:
        number = int(row["round"] or 0)
        value = row.get(self._measure.column)
        self._value = self._value if value is None else float(value)
        if number == 0:
            return
        parts = []
        if (loss := row.get("train_loss")) is not None:
            parts.append(f"train loss {loss:.4g}")
        if self._value is not None:
            parts.append(f"{self._measure.name} {short(self._measure, self._value)}")
        elif (loss := row.get("test_loss")) is not None:
            parts.append(f"test loss {loss:.4g}")
        if (loss := row.get("validation_loss")) is not None and self._live is None:
            parts.append(f"validation loss {loss:.4g}")
        parts.append(f"{(number - self._resumed) / max(self._clock() - self._began, 1e-9):.3g} rounds/s")
        metrics = "  ".join(parts)
        if isinstance(self._live, Progress):
            brief = metrics.replace("train ", "").replace("test ", "")  # fits into 80 columns
            self._live.update(self._task, completed=number, metrics=brief)
        elif number == num_server_rounds or number % math.ceil(num_server_rounds / PLAIN_LINES) == 0:
            width = len(str(num_server_rounds))
            self._say(f"round {number:{width}}/{num_server_rounds}  {metrics}")


def plain_table(first: str, *others: str) -> Table:
    """Return a table without lines; all columns but the first are right-aligned."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(cell(first))
    for name in others:
        table.add_column(cell(name), justify="right")
    return table


def cell(value: object) -> str:
    """Return a value as the text of a table's cell, in which nothing is markup or controls the terminal."""
    return escape(escaped(str(value)))


def short(measure: Measure, value: float | None) -> str:
    """Return a measure's value for one line: per cent with one digit, or a number with four."""
    assert value is not None
    return f"{value:.1%}" if measure.percent else f"{value:.4g}"


def summary(result: Result) -> str:
    """Return the outcome of a run in one line."""
    rounds, planned = result.last_round, result.config.num_server_rounds
    ends = {
        "finished": f"finished {rounds} rounds",
        "diverged": f"diverged: loss or parameters were no longer finite in round {rounds}",
        "interrupted": f"was interrupted after {rounds} rounds",
    }
    end = f"stopped early after {rounds} of {planned} rounds" if result.stopped_early else None
    parts = [f"{end or ends.get(result.status, result.status)} in {result.total('seconds'):.1f} s"]
    headline = result.headline
    value, best = result.last(headline.column), result.best()
    if value is not None and best is not None:
        other = headline.rank(best) < headline.rank(value) and headline.column != "test_loss"
        beside = [f"best {short(headline, best)}"] if other else []
        if headline.column == "test_accuracy" and (share := result.majority_share):
            beside.append(f"{share:.1%} is the majority class")
        parts.append(
            f"{headline.name} {short(headline, value)}" + (f" ({', '.join(beside)})" if beside else "")
        )
    if (loss := result.best("validation_loss")) is not None:
        lowest = f"lowest validation loss {loss:.4g} in round {result.best_round()}"
        chosen = result.selected()
        shown = chosen is not None and headline.column != "test_loss"
        parts.append(lowest + (f", with {headline.name} {short(headline, chosen)}" if shown else ""))
    if (loss := result.last("train_loss")) is not None:
        parts.append(f"train loss {loss:.4g}")
    if result.target is not None:
        (column, target), reached = result.target, result.rounds_to_target()
        named = "" if column == headline.column else f"{result.measure(column).name} "
        parts.append(
            f"{named}{target:.4g} {'not reached' if reached is None else f'reached in round {reached}'}"
        )
    return f"{result.config.algorithm} {', '.join(parts)}"
