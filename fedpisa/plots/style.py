"""How pictures look and are written; made without pyplot, so that nothing global changes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart with any kind of colour vision, less its yellow, too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # so that the curves can be told apart without colour, too
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # from the eighth curve on
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


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of all pictures here, as long as the block lasts."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def picture_path(path: str | Path | None) -> Path | None:
    """Return a picture's path if its suffix is one that can be written.

    Raises
    ------
    ValueError
        If it is not.
    """
    if path is None:
        return None
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a picture's name must end in {', '.join(SUFFIXES)}, not {file.name!r}: rename it")
    return file


def write_picture(figure: Figure, file: Path | None) -> None:
    """Write a picture to a file of `SUFFIXES`, if there is to be one: the same picture, the same bytes."""
    if file is None:
        return
    # No date in the file: the same data give the same bytes.
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    suffix, content = file.suffix.lower(), io.BytesIO()
    figure.savefig(content, format=suffix[1:], metadata=metadata[suffix])
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, content.getvalue())
