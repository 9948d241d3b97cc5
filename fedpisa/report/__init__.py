"""A report that compares many runs: an HTML page, and its tables as CSV and LaTeX.

`runs` reads and groups the runs, and `tunings` the trials of their tuning. `statistics` and `findings` compute the
numbers. `curves` and `clients` prepare the figures. `tables`, `hyperparameters`, `formatting` and `summary` write
tables and sentences. `page` renders all into one HTML file.
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
    target: float | None = None,
    title: str | None = None,
) -> Written:
    """Compare runs in an HTML page, and write its tables into the folder ``<page's name>-tables`` beside it.

    The runs are only read: nothing that they name is imported, and no data are loaded.

    Parameters
    ----------
    directories
        Directories of runs, or directories that contain runs at any depth, such as a study's. Directories of
        ``fedpisa tune`` among them, or in them, give the section on tuning.
    out
        File of the page, ``.html``. An existing page and its tables are replaced.
    target
        Value of the runs' first measure, for an accuracy in (0, 1], up to which costs are counted. By default the runs'
        common target; if they have none, 95% of the best final value of each split where more is better.
    title
        Heading of the page.

    Raises
    ------
    ValueError
        If there is no readable run, the page's name has another suffix, or the target is not an accuracy.
    """
    from fedpisa.report import clients, findings, page, runs, tables, tunings
    from fedpisa.report.hyperparameters import hyperparameters
    from fedpisa.storage.files import refuse_link, replace_file

    file = Path(out)
    if file.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"a report's name must end in .html, not {file.name!r}: rename it")
    directories = list(directories)
    collection = runs.collect(directories)
    tuned, damaged = tunings.find(directories)
    found = findings.find(collection, target)
    pictures = [
        one
        for split in range(len(collection.splits))
        if (one := clients.picture([run for g in collection.of_split(split) for run in g.runs], split))
    ]
    fairness = clients.fairness(collection, {one.split: one.measure for one in found.by_split})
    made = [
        tables.overview(found),
        tables.accuracy(found),
        tables.significance(found),
        tables.cost(found),
        tables.fairness(found, fairness),
        tables.runs(found),
        hyperparameters(collection),
        *([tables.tuning(tuned, collection)] if tuned else []),
    ]
    by_name, heading = {one.name: one for one in made}, title or "Report of fedpisa"
    html = page.render(found, by_name, pictures, fairness, tuned, damaged, heading)
    folder = refuse_link(file.with_name(f"{file.stem}-tables"))
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(file, html.encode(errors="backslashreplace"))  # a folder's name may be no text
    return Written(file, tuple(path for one in made for path in one.write(folder)))
