"""``fedpisa bench``: time and memory of a round."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.app import app

if TYPE_CHECKING:
    from rich.table import Table

    from fedpisa.bench.measure import Figure


class BenchAlgorithm(StrEnum):
    """Algorithms of ``fedpisa bench``."""

    FEDAVG = "fedavg"
    SISA = "sisa"


@app.command()
def bench(
    workloads: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[A] [B] [C] [D] [M] [L] [G] [V] [R]", help="Workloads to run.", show_default="all"
        ),
    ] = None,
    algorithm: Annotated[
        list[BenchAlgorithm] | None, typer.Option(help="May be repeated.", show_default="both")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Processes per workload and algorithm.")] = 3,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Timed rounds.", show_default="20, 4 for B, 5 for L, G, V and R")
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of PyTorch.", show_default="one per core")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One process each, three rounds.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="A .json file for the measurements.", show_default=False)
    ] = None,
) -> None:
    """Measure this machine: seconds per round, memory and start-up of nine workloads, each in its own process."""
    from rich.console import Console

    from fedpisa.bench import measure, table
    from fedpisa.bench.workloads import ALGORITHMS

    names = [name for name in ALGORITHMS if not algorithm or name in algorithm]
    jobs = measure.jobs(workloads or (), names, 3 if quick else rounds, 1 if quick else 3)
    terminal = Console(highlight=False, soft_wrap=True)
    progress = Console(stderr=True, highlight=False, soft_wrap=True)
    measurements = []
    for reason in measure.lacking(jobs):
        progress.print(f"left out: {reason}", markup=False)
    for one in measure.alternate([measure.fedpisa(threads)], jobs, 1 if quick else repeats):
        measurements.append(one)
        progress.print(table.line(one), markup=False)
    if out is not None:
        table.write_json(out, measurements)
    terminal.print(_figures_table(measure.summary(measurements)))
    if any(one.error for one in measurements):
        raise typer.Exit(1)


def _figures_table(figures: Sequence[Figure]) -> Table:
    """Return a row per workload and algorithm."""
    from fedpisa.bench.table import digits, memory, seconds, startup
    from fedpisa.runs.console import plain_table

    table = plain_table(
        "workload", "s per round (processes)", "memory, GB", "start to first round, s", "evaluation, s"
    )
    for one in figures:
        evaluation = "" if one.error else digits(one.evaluation)
        table.add_row(f"{one.workload} {one.algorithm}", seconds(one), memory(one), startup(one), evaluation)
    return table
