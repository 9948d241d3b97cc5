"""``fedpisa partition`` and ``fedpisa plot``: show the split and the curves."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.app import app
from fedpisa.cli.options import Allow, File, Keys, read_config
from fedpisa.cli.terminal import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from fedpisa.datasets import Heterogeneity


MOST_ROWS = 25
"""Clients up to which ``fedpisa partition`` lists each."""
MOST_LABELS = 12
"""Labels up to which ``fedpisa partition`` counts each."""


class XAxis(StrEnum):
    """The x axis of curves."""

    ROUND = "round"
    BYTES = "bytes"
    LOCAL_STEPS = "local-steps"
    SECONDS = "seconds"
    SIMULATED_SECONDS = "simulated-seconds"


@app.command()
def partition(
    file: File = None,
    config: Keys = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the split into a .png, .pdf or .svg.", show_default=False)
    ] = None,
    allow: Allow = None,
) -> None:
    """Show how a configuration splits the data among clients, and how heterogeneous the clients are."""
    settings = read_config(file, config, allow)
    from rich.console import Console

    from fedpisa import datasets, plots
    from fedpisa.datasets.validation import hold_out
    from fedpisa.simulation.federation import load_dataset, split_dataset

    picture = plots.picture_path(out)
    data = hold_out(load_dataset(settings), settings.validation_fraction, settings.seed).dataset
    parts = split_dataset(settings, data)[1]
    split = datasets.heterogeneity(data.y_train, parts, data.num_classes)
    terminal = Console(highlight=False, soft_wrap=True)
    say(
        f"{settings.dataset}: {split.sizes.sum():,} training samples on {settings.num_clients} clients "
        f"by {settings.partitioner}, seed {settings.seed}"
    )
    terminal.print()
    if settings.num_clients <= MOST_ROWS:
        terminal.print(_clients_table(split))
        terminal.print()
    terminal.print(_indices_table(split))
    if picture is not None:
        plots.plot_partition(data.y_train, parts, data.num_classes, picture)
        terminal.print()
        say(f"picture: {picture}")


def _clients_table(split: Heterogeneity) -> Table:
    """Return a row per client: its size, and its samples of each label or, with many labels, their number."""
    from fedpisa.runs.console import plain_table

    counts = split.label_counts
    titles: list[str] = []
    cells: list[list[str]] = [[]] * len(split.sizes)
    if counts is not None and counts.shape[1] <= MOST_LABELS:
        titles = ["label 0", *map(str, range(1, counts.shape[1]))]
        cells = [[str(number) if number else "." for number in row] for row in counts]
    elif counts is not None:
        titles, cells = ["labels"], [[str((row > 0).sum())] for row in counts]
    table = plain_table("client", "samples", *titles)
    for client, (size, row) in enumerate(zip(split.sizes, cells, strict=True)):
        table.add_row(str(client), str(size), *row)
    return table


def _indices_table(split: Heterogeneity) -> Table:
    """Return the heterogeneity indices, one per row, each with its range."""
    from fedpisa.runs.console import plain_table

    sizes = split.sizes
    table = plain_table("index", "value", "range")
    table.add_row("samples per client, least / median / most", _three(sizes), "")
    if split.label_counts is not None:
        table.add_row(
            "labels per client, least / median / most", _three((split.label_counts > 0).sum(axis=1)), ""
        )
    table.add_row("effective number of clients", f"{split.effective_clients:.2f}", f"1 to {len(sizes)}")
    for name, value, top in (
        ("Jensen-Shannon distance to all labels, mean", split.jensen_shannon, 1),
        ("Hellinger distance to all labels, mean", split.hellinger, 1),
        ("earth mover's distance to all labels", split.earth_mover, 2),
    ):
        if value is not None:
            table.add_row(name, f"{value:.3f}", f"0 to {top}")
    return table


def _three(numbers: NDArray[np.int64]) -> str:
    return f"{numbers.min()} / {statistics.median(numbers.tolist()):g} / {numbers.max()}"


@app.command()
def plot(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Directories of runs, or a directory that contains runs."),
    ],
    x: Annotated[XAxis, typer.Option(help="The x axis; all but round are running sums.")] = XAxis.ROUND,
    y: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of metrics.jsonl; repeat for more panels.",
            show_default="test-accuracy (or test-loss) and train-loss",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A .png, .pdf or .svg; replaced if it exists.")] = Path(
        "curves.png"
    ),
) -> None:
    """Draw convergence curves of one or more runs."""
    from fedpisa import plots
    from fedpisa.runs.results import curve_labels, load_result

    results = [load_result(directory) for directory in _run_directories(runs)]
    targets = {result.config.target_accuracy for result in results}
    plots.plot_curves(
        {label: r.history for label, r in zip(curve_labels(results), results, strict=True)},
        x=x.value,
        y=[column.replace("-", "_") for column in y] if y else None,
        path=out,
        target_accuracy=targets.pop() if len(targets) == 1 else None,
    )
    say(f"picture: {out}")


def _run_directories(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each run's directory, and the runs directly in any other directory."""
    for path in paths:
        inside = [] if (path / "config.toml").exists() else sorted(path.glob("*/config.toml"))
        yield from [file.parent for file in inside] or [path]
