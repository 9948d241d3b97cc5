"""One page about many runs: which algorithm, at what cost, is it significant; and its tables as CSV and LaTeX.

`runs` reads and groups the runs. `statistics` and `findings` compute the numbers. `curves` and `clients` prepare the
figures. `tables`, `text` and `summary` write tables and sentences. `page` renders all into one HTML file.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import final


@final
@dataclass(frozen=True)
class Written:
    """Paths of a report's files.

    Parameters
    ----------
    page
        The HTML page.
    tables
        The CSV and LaTeX files.
    """

    page: Path
    tables: tuple[Path, ...]


def write_report(
    directories: Iterable[str | Path],
    out: str | Path = "report.html",
    *,
    target_accuracy: float | None = None,
    load_data: bool = True,
    title: str | None = None,
) -> Written:
    """Compare runs in one HTML page, and write its tables beside it, into the folder ``<page's name>-tables``.

    Parameters
    ----------
    directories
        Runs' directories, or folders that hold some at any depth, such as a study's.
    out
        The page, ``.html``; it and the tables are replaced if they exist.
    target_accuracy
        In [0, 1], for the costs; by default the runs' own ``target-accuracy`` if they agree, or else 95% of the
        best final accuracy of each split.
    load_data
        Whether to load the runs' data, which the picture of the labels and the accuracies by client need.
    title
        The page's heading.

    Raises
    ------
    ValueError
        If there is no run, the page's name has another suffix, or the target is no accuracy.
    """
    from fedpisa.report import clients, findings, page, runs, tables

    file = Path(out)
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report's name must end in .html, not {file.name!r}: rename it")
    if target_accuracy is not None and not 0 < target_accuracy <= 1:
        raise ValueError(
            f"a target of {target_accuracy:g} is no accuracy: give a fraction in (0, 1], such as 0.9"
        )
    collection = runs.collect(directories)
    found = findings.find(collection, target_accuracy)
    data = clients.Data(load_data)
    pictures = [
        one
        for split in range(len(collection.splits))
        if (one := clients.picture([run for g in collection.of_split(split) for run in g.runs], split, data))
    ]
    fairness = clients.fairness(collection, data)
    made = [
        tables.overview(found),
        tables.accuracy(found),
        tables.significance(found),
        tables.cost(found),
        tables.fairness(found, fairness),
        tables.runs(found),
    ]
    html = page.render(
        found, {one.name: one for one in made}, pictures, fairness, title or "Report of fedpisa"
    )
    folder = file.with_name(f"{file.stem}-tables")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(html, encoding="utf-8")
    return Written(file, tuple(path for one in made for path in one.write(folder)))
