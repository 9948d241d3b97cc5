"""The style and the files of pictures; without pyplot, so that no global state changes."""

from __future__ import annotations

import io
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The palette of Okabe and Ito for all kinds of colour vision, without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # curves stay distinct without colour
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # the next style every seven curves
SUFFIXES = (".png", ".pdf", ".svg")

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.7,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "fedpisa",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}


def style() -> AbstractContextManager[None]:
    """Return a context manager that sets the package's style."""
    import matplotlib

    return matplotlib.rc_context(_STYLE)


def picture_path(path: str | Path | None) -> Path | None:
    """Return the path of a picture, checked for its suffix.

    Raises
    ------
    ValueError
        If the suffix is not in `SUFFIXES`.
    """
    if path is None:
        return None
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a picture's name must end in {', '.join(SUFFIXES)}, not {file.name!r}: rename it")
    return file


def write_picture(figure: Figure, file: Path | None) -> None:
    """Write a picture to ``file`` unless it is ``None``; the same picture gives the same bytes."""
    if file is None:
        return
    # The date and the program's version would change the bytes.
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    suffix, content = file.suffix.lower(), io.BytesIO()
    figure.savefig(content, format=suffix[1:], metadata=metadata[suffix])
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, content.getvalue())
