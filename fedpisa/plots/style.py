"""The style and the files of pictures; without pyplot, so that no global state changes."""

from __future__ import annotations

import io
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedpisa.storage.files import replace_file

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.figure import Figure

# The palette of Okabe and Ito for all kinds of colour vision, without yellow, which is too light on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # curves stay distinct without colour
DASHES = ("-", (0, (4, 1.5)), (0, (1.2, 1.2)))  # three styles in turn, so that 21 curves differ
REFERENCE: dict[str, Any] = {"color": "#666666", "marker": "", "linewidth": 1.2}
"""Look of the lines that give scale; their dashes differ."""
REFERENCE_DASHES = ((0, (7, 3)), (0, (2, 2)), (0, (7, 2, 1, 2)))
SUFFIXES = (".png", ".pdf", ".svg", ".pgf")
LATEX = ("xelatex", "lualatex", "pdflatex")
"""Programs that measure the texts of a ``.pgf`` picture; the first that is installed does."""

_STYLE: Any = {
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
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "savefig.dpi": 200,
    "svg.hashsalt": "fedpisa",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "pgf.rcfonts": False,  # the fonts of the document
}


def style(font_size: float = 9.0) -> AbstractContextManager[None]:
    """Return a context manager that sets the package's style.

    Parameters
    ----------
    font_size
        Size of titles, labels and the legend in points; ticks are one point smaller, lines in proportion.

    Raises
    ------
    ValueError
        If the size is not positive.
    """
    import matplotlib

    if not 1 < font_size < 100:
        raise ValueError(f"a font of {font_size:g} points cannot be read: give a size such as 8")
    texts = ("font.size", "axes.titlesize", "axes.labelsize", "legend.fontsize")
    changed: Any = {
        **_STYLE,
        **dict.fromkeys(texts, font_size),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize"), font_size - 1),
        "lines.linewidth": 0.2 * font_size,
    }
    if (program := _latex()) is not None:
        changed["pgf.texsystem"] = program
    return matplotlib.rc_context(changed)


def look(number: int, font_size: float = 9.0) -> dict[str, Any]:
    """Return the colour, marker and dashes of a curve, by which it differs from the others, also in grey."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": DASHES[number % len(DASHES)],
        "markersize": 0.42 * font_size,
        "linewidth": 0.17 * font_size,
    }


def legend_below(figure: Figure, handles: Sequence[Artist], labels: Sequence[str], note: str = "") -> None:
    """Add a legend and a note below the panels, and make the figure higher by their heights.

    The legend has as many columns as fit. Labels that are wider than the figure are wrapped.

    Parameters
    ----------
    figure
        A figure with a constrained layout.
    handles, labels
        What the legend shows.
    note
        A text under the legend; it is wrapped.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    renderer = canvas.get_renderer()
    width, height = figure.get_size_inches()
    room = figure.bbox.width
    texts, columns = list(labels), len(labels)
    while True:
        legend = figure.legend(handles, texts, loc="lower center", ncols=columns)
        box = legend.get_window_extent(renderer)
        longest = max(len(line) for text in texts for line in text.split("\n"))
        if box.width <= room or (columns == 1 and longest < 8):
            break
        legend.remove()
        if columns > 1:
            columns -= 1
        else:
            texts = [textwrap.fill(text, max(7, int(0.9 * longest))) for text in labels]
    rows = -(-len(texts) // columns)
    legend.remove()
    pad = 0.04
    below = pad
    if note:
        text = figure.text(0, 0, note, fontsize="small", color="#444444", va="bottom")
        line = len(note)
        while text.get_window_extent(renderer).width > 0.98 * room and line > 8:
            line = int(0.9 * line)
            text.set_text(textwrap.fill(note, line))
        below += text.get_window_extent(renderer).height / figure.dpi + pad
    extra = below + box.height / figure.dpi + pad
    whole = height + extra
    figure.set_size_inches(width, whole)
    if note:
        text.set_position((0.01, pad / whole))
    figure.legend(
        handles,
        texts,
        loc="lower center",
        ncols=-(-len(texts) // rows),
        bbox_to_anchor=(0.5, below / whole),
        borderaxespad=0,
    )
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, extra / whole, 1, height / whole))


@contextmanager
def _escaped(figure: Figure) -> Iterator[None]:
    """Escape what LaTeX would read as a command in the figure's texts without mathematics, as matplotlib does not."""
    from matplotlib.text import Text

    special = str.maketrans(
        {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", **{sign: f"\\{sign}" for sign in "&#_{}"}}
    )
    before = {text: text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)}
    try:
        for artist, text in before.items():
            if text.count("$") < 2:
                artist.set_text(text.translate(special))
        yield
    finally:
        for artist, text in before.items():
            artist.set_text(text)


def _latex() -> str | None:
    return next((name for name in LATEX if shutil.which(name)), None)


def picture_path(path: str | Path | None) -> Path | None:
    """Return the path of a picture, checked for its suffix.

    Raises
    ------
    ValueError
        If the suffix is not in `SUFFIXES`, or if it is ``.pgf`` and no LaTeX is installed.
    """
    if path is None:
        return None
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a picture's name must end in {', '.join(SUFFIXES)}, not {file.name!r}: rename it")
    if file.suffix.lower() == ".pgf" and _latex() is None:
        raise ValueError(
            f"{file.name} needs LaTeX to measure its texts, and none of {', '.join(LATEX)} is installed: install one, "
            f"or write {file.stem}.pdf"
        )
    return file


def write_picture(figure: Figure, file: Path | None) -> None:
    """Write a picture to ``file`` unless it is ``None``; the same picture gives the same bytes."""
    if file is None:
        return
    # The date and the program's version would change the bytes.
    metadata = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    suffix, content = file.suffix.lower(), io.BytesIO()
    options: Any = {"metadata": metadata[suffix]} if suffix in metadata else {}
    with _escaped(figure) if suffix == ".pgf" else nullcontext():
        figure.savefig(content, format=suffix[1:], **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_file(file, content.getvalue())
