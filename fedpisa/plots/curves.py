"""Convergence curves of runs, from their histories."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedpisa.plots.style import COLOURS, DASHES, MARKERS, picture_path, style, write_picture

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Abscissa = Literal["round", "bytes", "local-steps", "seconds", "simulated-seconds"]

_X_LABELS = {
    "round": "server round",
    "bytes": "megabytes up and down",
    "local-steps": "local gradient evaluations, all clients",
    "seconds": "training time (s)",
    "simulated-seconds": "simulated time (s)",
}
_Y_LABELS = {
    "gradient_norm": "gradient norm of the objective",
    "stationarity": "norm of sum alpha pi - lambda w",
}


def plot_curves(
    results: Mapping[str, pd.DataFrame],
    x: Abscissa = "round",
    y: str | Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    target_accuracy: float | None = None,
) -> Figure:
    """Draw runs against rounds, bytes, local steps or seconds, one panel per measured column.

    Parameters
    ----------
    results
        From each curve's label to the run's history.
    x
        ``round``, or the running sum of ``bytes`` (both ways), ``local-steps``, ``seconds`` or, of a run with a
        ``pace``, ``simulated-seconds``.
    y
        Columns of the history; by default test accuracy (test loss where there is none) and train loss.
        What is no accuracy gets a logarithmic scale where all its values are positive.
    path
        Where to write the picture, ``.png``, ``.pdf`` or ``.svg``; not written by default.
    target_accuracy
        Drawn as a line in the panels of accuracies, in [0, 1].

    Raises
    ------
    ValueError
        If there is no run, a run lacks a column, or the file's kind is unknown.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.transforms import blended_transform_factory

    panels = default_columns(results.values()) if y is None else [y] if isinstance(y, str) else list(y)
    if not results or not panels:
        raise ValueError("there is nothing to plot: name at least one run and one column")
    file = picture_path(path)
    with style():
        layout = ConstrainedLayoutEngine(wspace=0.06)
        figure = Figure(figsize=(0.6 + 3.6 * len(panels), 3.1), layout=layout)
        axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False, sharex=True)[0])
        for ax, column in zip(axes, panels, strict=True):
            for number, (label, result) in enumerate(results.items()):
                block, turn = divmod(number, len(COLOURS))
                look = {
                    "color": COLOURS[turn],
                    "marker": MARKERS[turn],
                    "linestyle": DASHES[block % len(DASHES)],
                }
                draw_curve(ax, result, x, column, label=label, **look)
            label_axes(ax, x, column)
            if target_accuracy is not None and column.endswith("accuracy"):
                ax.axhline(target_accuracy, color="#666666", linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.5)
                place = blended_transform_factory(ax.transAxes, ax.transData)
                words = f"target {100 * target_accuracy:.4g}%"
                ax.text(
                    0.01, target_accuracy, words, transform=place, va="bottom", fontsize=7.5, color="#555555"
                )
        if len(results) > 1:
            handles, labels = axes[0].get_legend_handles_labels()
            columns = min(len(labels), 2 * len(panels) + 1)
            figure.legend(handles, labels, loc="outside upper center", ncols=columns)
        else:
            axes[0].set_title(next(iter(results)), loc="left")
        write_picture(figure, file)
    return figure


def default_columns(results: Iterable[pd.DataFrame]) -> list[str]:
    """Return the panels that every run can fill: the test's accuracy or else its loss, and the train loss.

    Examples
    --------
    >>> import pandas as pd
    >>> default_columns([pd.DataFrame({"round": [1], "test_loss": [0.5], "train_loss": [0.4]})])
    ['test_loss', 'train_loss']
    """
    columns = [set(result.dropna(axis="columns", how="all").columns) for result in results]
    common = set.intersection(*columns) if columns else set()
    found = [name for name in ("test_accuracy", "test_loss", "train_loss") if name in common]
    return [name for name in found if name != "test_loss" or "test_accuracy" not in found]


def draw_curve(ax: Axes, frame: pd.DataFrame, x: str, y: str, **line: Any) -> None:
    """Draw one column of one run into ``ax``, over the rounds in which it was measured.

    Parameters
    ----------
    ax
        Where to draw.
    frame
        A run's history.
    x, y
        As in `plot_curves`.
    line
        Options of matplotlib's line.
    """
    column = y.replace("-", "_")
    if column not in frame:
        known = ", ".join(name for name in frame.columns if name != "round")
        raise ValueError(f"there is no column {y!r} to plot: choose from {known}")
    values = frame[column].to_numpy(dtype=float)
    finite = np.isfinite(values)
    # About eight marks on a curve, staggered; where there are few points all, to show how often was measured.
    number = int(finite.sum())
    step = 1 if number <= 15 else number // 8
    look = {"marker": "o", "markersize": 3.8, "markevery": (len(ax.lines) * step // 3 % step, step), **line}
    ax.plot(abscissa(frame, x)[finite], values[finite], **look)


def abscissa(frame: pd.DataFrame, x: str) -> NDArray[np.float64]:
    """Return the horizontal position of every round: its number, or what has been spent until its end.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"round": [0, 1, 2], "local_steps": [float("nan"), 20, 20]})
    >>> abscissa(frame, "local-steps").tolist()
    [0.0, 20.0, 40.0]
    """
    spent = {
        "round": (),
        "bytes": ("bytes_up", "bytes_down"),
        "local-steps": ("local_steps",),
        "seconds": ("seconds",),
        "simulated-seconds": ("simulated_seconds",),
    }
    if x not in spent:
        raise ValueError(f"{x!r} is no axis to plot against: choose from {', '.join(get_args(Abscissa))}")
    if x == "round":
        return frame["round"].to_numpy(dtype=np.float64)
    missing = [name for name in spent[x] if name not in frame]
    if missing:
        raise ValueError(f"this run has no column {missing[0]!r}: plot it against round")
    per_round = frame[list(spent[x])].fillna(0).to_numpy(dtype=np.float64)
    total: NDArray[np.float64] = per_round.sum(axis=1).cumsum()
    return total / 1e6 if x == "bytes" else total


def label_axes(ax: Axes, x: str, y: str) -> None:
    """Give the axes their names, units and scales."""
    from matplotlib.ticker import (
        EngFormatter,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        PercentFormatter,
    )

    name = y.replace("_", " ").replace("-", " ")
    ax.set_xlabel(_X_LABELS.get(x, x))
    ax.set_ylabel(_Y_LABELS.get(y, name))
    ax.margins(x=0.02)
    if x == "round":
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if x == "local-steps":
        ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    if name.endswith("accuracy"):
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    elif _all_positive(ax):
        ax.set_yscale("log")
        # 0.05, 0.1, 0.2 over a few decades; powers of ten alone over many.
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _all_positive(ax: Axes) -> bool:
    values = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines]
    return any(len(v) for v in values) and all((v > 0).all() for v in values)
