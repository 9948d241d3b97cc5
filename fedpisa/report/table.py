"""One table of the report: its numbers for CSV, and the same as text for the page and for LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    import pandas as pd

_LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "²": "$^2$", "<": "$<$", "\ue000": r"\textbf{", "\ue001": "}"}


@final
@dataclass(frozen=True, eq=False)
class Table:
    """One table.

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
    """

    name: str
    title: str
    note: str
    frame: pd.DataFrame
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 2
    strong: frozenset[tuple[int, int]] = frozenset()

    def to_latex(self) -> str:
        r"""Return a ``tabular`` of booktabs' rules, to be ``\input`` into a ``table``."""
        import pandas as pd

        marked = [
            [f"\ue000{cell}\ue001" if (i, j) in self.strong else cell for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        tabular = pd.DataFrame(marked, columns=pd.Index(self.head)).to_latex(index=False, escape=True)
        text = f"% {self.title}\n% \\usepackage{{booktabs}}\n{tabular}"
        for character, command in _LATEX.items():
            text = text.replace(character, command)
        return text

    def write(self, folder: Path) -> list[Path]:
        """Write ``<name>.csv`` and ``<name>.tex`` and return their paths."""
        csv, tex = folder / f"{self.name}.csv", folder / f"{self.name}.tex"
        self.frame.to_csv(csv, index=False)
        tex.write_text(self.to_latex(), encoding="utf-8")
        return [csv, tex]


def frame_of(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Return tidy rows as a data frame."""
    import pandas as pd

    return pd.DataFrame(list(rows))
