"""A table of the report: numbers for CSV, and text for the page and for LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, final

import pandas as pd

from fedpisa.storage.csv_file import to_csv
from fedpisa.storage.files import replace_file

Row = TypeVar("Row")

_LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "²": "$^2$", "<": "$<$", "\ue000": r"\textbf{", "\ue001": "}"}


@final
@dataclass(frozen=True, eq=False)
class Table:
    """A table with a caption and a note.

    Parameters
    ----------
    name
        Name of the files, without suffix.
    title
        Caption.
    note
        Explanation under the table.
    frame
        Unrounded numbers for the CSV file: fractions, bytes and seconds.
    head, rows
        Column titles and cells, as text.
    texts
        Number of columns at the left that hold names; they are left-aligned.
    strong
        Cells ``(row, column)`` in bold.
    rules
        Rows above which LaTeX draws a rule.
    """

    name: str
    title: str
    note: str
    frame: pd.DataFrame
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 2
    strong: frozenset[tuple[int, int]] = frozenset()
    rules: frozenset[int] = frozenset()

    def to_latex(self) -> str:
        r"""Return a ``tabular`` with booktabs' rules; ``\input`` it into a ``table``."""
        # A folder's name may be no text.
        rows = [[cell.encode(errors="backslashreplace").decode() for cell in row] for row in self.rows]
        marked = [
            [f"\ue000{cell}\ue001" if (i, j) in self.strong else cell for j, cell in enumerate(row)]
            for i, row in enumerate(rows)
        ]
        tabular = pd.DataFrame(marked, columns=pd.Index(self.head)).to_latex(index=False, escape=True)
        lines = tabular.splitlines(keepends=True)
        first = lines.index("\\midrule\n") + 1
        for row in sorted(self.rules, reverse=True):
            lines.insert(first + row, "\\midrule\n")
        tabular = "".join(lines)
        text = f"% {self.title}\n% \\usepackage{{booktabs}}\n{tabular}"
        for character, command in _LATEX.items():
            text = text.replace(character, command)
        return text

    def write(self, folder: Path) -> list[Path]:
        """Write ``<name>.csv`` and ``<name>.tex`` and return their paths."""
        csv, tex = folder / f"{self.name}.csv", folder / f"{self.name}.tex"
        replace_file(csv, to_csv(self.frame))
        replace_file(tex, self.to_latex().encode())
        return [csv, tex]


@final
@dataclass(frozen=True, eq=False)
class Column(Generic[Row]):
    """A column of a table: add one to a table's tuple to have it in the page, in CSV and in LaTeX.

    Parameters
    ----------
    title
        The heading.
    text
        Returns a row's cell as readers see it; without it, the column is only in the CSV file.
    data
        Returns a row's cells of the CSV file, by name.
    """

    title: str = ""
    text: Callable[[Row], str] | None = None
    data: Callable[[Row], Mapping[str, object]] = lambda row: {}


def table_of(
    name: str, title: str, note: str, columns: Sequence[Column[Row]], rows: Sequence[Row], texts: int = 2
) -> Table:
    """Return the table with these columns and rows; see `Table` for the other parameters."""
    shown = [(column.title, column.text) for column in columns if column.text]
    return Table(
        name,
        title,
        note,
        pd.DataFrame([{key: v for column in columns for key, v in column.data(row).items()} for row in rows]),
        [heading for heading, _ in shown],
        [[text(row) for _, text in shown] for row in rows],
        texts,
    )
