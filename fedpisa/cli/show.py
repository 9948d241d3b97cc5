"""``fedpisa partition`` and ``fedpisa plot``: show the split and the curves."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedpisa.cli.app import app
from fedpisa.cli.options import Allow, File, Keys, read_config
from fedpisa.cli.terminal import say
from fedpisa.storage.files import refuse_link

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from fedpisa.datasets import Heterogeneity


MOST_ROWS = 25
"""Clients up to which ``fedpisa partition`` lists each."""
MOST_LABELS = 12
"""Labels up to which ``fedpisa partition`` counts each."""


class BandKind(StrEnum):
    """The band around a mean."""

    DEVIATION = "deviation"
    INTERVAL = "interval"


@app.command()
def partition(
    file: File = None,
    config: Keys = None,
    out: Annotated[
        Path | None, typer.Option(help="Draw the split into a .png, .pdf, .svg or .pgf.", show_default=False)
    ] = None,
    allow: Allow = None,
) -> None:
    """Show how a configuration splits the data among clients, and how heterogeneous the clients are."""
    settings = read_config(file, config, allow)
    from rich.console import Console

    from fedpisa import datasets, plots
    from fedpisa.datasets.validation import hold_out
    from fedpisa.simulation.parts import load_dataset, split_dataset

    picture = plots.picture_path(out)
    data = hold_out(load_dataset(settings), settings.validation_fraction, settings.seed).dataset
    labels = data.split_labels
    if picture is not None and labels is None:
        raise ValueError(f"{data.name} has no labels that a picture could show: leave out --out")
    parts = split_dataset(settings, data)[1]
    split = datasets.heterogeneity(labels, parts, data.num_split_classes)
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
    if picture is not None and labels is not None:
        plots.plot_partition(labels, parts, data.num_split_classes, picture)
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
        typer.Argument(
            metavar="DIR...", help="A study's directory, runs, or a directory that contains runs."
        ),
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            "--x",
            help="rounds, bytes, gradients, seconds, simulated-seconds or env-steps; all but rounds are running sums. "
            "Of a study also several: rounds,gradients.",
        ),
    ] = "rounds",
    y: Annotated[
        list[str] | None,
        typer.Option(
            help="A column of metrics.jsonl; repeat for more panels.",
            show_default="the task's first measure, such as test-accuracy; for single runs also train-loss",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="A .pdf, .svg, .pgf or .png; replaced if it exists.")] = Path(
        "curves.png"
    ),
    band: Annotated[
        BandKind, typer.Option(help="Of a study: the standard deviation, or the 95% interval of the mean.")
    ] = BandKind.DEVIATION,
    width: Annotated[
        str | None, typer.Option(help="Width, such as 3.25in, 8cm, 80mm or 240pt.", show_default="by panels")
    ] = None,
    font_size: Annotated[float, typer.Option(help="Size of the labels in points.")] = 9.0,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT,...", help="Texts of the legend.", show_default="the names"),
    ] = None,
) -> None:
    """Draw a study, as mean and band over its seeds with a panel for each split, or the curves of single runs."""
    from fedpisa import plots
    from fedpisa.runs.results import curve_labels, load_result
    from fedpisa.studies.study import STUDY_FILE, read_study

    columns = [column.replace("-", "_") for column in y] if y else None
    texts, inches = _texts(labels), None if width is None else _inches(width)
    studies = [path for path in runs if (path / STUDY_FILE).is_file()]
    if studies and len(runs) > 1:
        raise ValueError(f"{studies[0]} is a study's directory: plot it alone, or name runs in it")
    if studies:
        study = read_study(refuse_link(studies[0] / STUDY_FILE))
        study.plot(
            studies[0],
            [axis.strip() for axis in against.split(",")],
            columns,
            out,
            band=band.value,
            labels=texts,
            width=inches,
            font_size=font_size,
        )
        say(f"picture: {out}")
        return
    results = [load_result(directory) for directory in _run_directories(runs)]
    targets = {result.target for result in results}
    measures = results[0].measures if results else ()
    names = curve_labels(results)
    unknown = [name for name in texts if name not in names]
    if unknown:
        raise ValueError(f"there is no curve {unknown[0]!r} to label: choose from {', '.join(names)}")
    labelled = {texts.get(name, name): result for name, result in zip(names, results, strict=True)}
    plots.plot_curves(
        {label: result.history for label, result in labelled.items()},
        against,
        columns,
        out,
        target=targets.pop() if len(targets) == 1 else None,
        measures=measures if all(result.measures == measures for result in results) else (),
        references=[label for label, result in labelled.items() if result.reference],
        width=inches,
        font_size=font_size,
    )
    say(f"picture: {out}")


def _texts(labels: Sequence[str] | None) -> dict[str, str]:
    """Return the texts by name of ``name=text,name=text``."""
    found = {}
    for part in ",".join(labels or ()).split(",") if labels else ():
        name, equals, text = part.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--labels {part!r} is not name=text: write sisa=SISA,fedavg=FedAvg")
        found[name.strip()] = text.strip()
    return found


def _inches(width: str) -> float:
    """Return a width such as ``8cm`` in inches; a number alone is in inches."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(in|cm|mm|pt|)\s*", width)
    size = float(found[1]) / {"cm": 2.54, "mm": 25.4, "pt": 72.27}.get(found[2], 1) if found else 0.0
    if not 1 <= size <= 100:
        raise ValueError(
            f"--width {width!r} is not a width of 1 to 100 inches: write 3.25in, 8cm, 80mm or 240pt"
        )
    return size


def _run_directories(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield each run's directory, and the runs directly in any other directory."""
    for path in paths:
        inside = [] if (path / "config.toml").exists() else sorted(path.glob("*/config.toml"))
        yield from [file.parent for file in inside] or [path]
