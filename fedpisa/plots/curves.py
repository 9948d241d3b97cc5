"""Convergence curves from the histories of runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fedpisa.plots.style import (
    REFERENCE,
    REFERENCE_DASHES,
    legend_below,
    look,
    picture_path,
    style,
    write_picture,
)
from fedpisa.tasks.measures import CLASSIFICATION, Measure, headline, measure_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Abscissa = Literal["rounds", "bytes", "gradients", "seconds", "simulated-seconds", "env-steps"]

# The label of each axis, and the columns of which it shows the running sum.
_X_AXES = {
    "rounds": ("server round", []),
    "bytes": ("megabytes up and down", ["bytes_up", "bytes_down"]),
    "gradients": ("local gradient evaluations, all clients", ["local_steps"]),
    "seconds": ("training time (s)", ["seconds"]),
    "simulated-seconds": ("simulated time (s)", ["simulated_seconds"]),
    "env-steps": ("steps of all environments", ["env_steps"]),
}
_OTHER_NAMES = {"round": "rounds", "local-steps": "gradients"}
_Y_LABELS = {
    "gradient_norm": "gradient norm of the objective",
    "stationarity": "norm of sum alpha pi - lambda w",
}


def plot_curves(
    results: Mapping[str, pd.DataFrame],
    x: Abscissa | str = "rounds",
    y: str | Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    target: tuple[str, float] | None = None,
    measures: Sequence[Measure] = CLASSIFICATION,
    references: Collection[str] = (),
    width: float | None = None,
    font_size: float = 9.0,
) -> Figure:
    """Draw columns of runs against rounds, bytes, gradients or seconds, one panel per column.

    Parameters
    ----------
    results
        Histories of the runs, by the labels of their curves.
    x
        ``rounds``, or the running sum of ``bytes`` (both ways), ``gradients``, ``seconds`` or, for runs with a
        ``pace``, ``simulated-seconds``.
    y
        Columns of the history; by default the first measure that the runs have on the test set, and the train loss.
        Positive columns of which less is better have a logarithmic scale.
    path
        File of the picture, ``.png``, ``.pdf``, ``.svg`` or ``.pgf``; not written by default.
    target
        Column and value to mark with a line.
    measures
        The runs' measures, which give columns their names, scales and defaults.
    references
        Labels of the runs that only give scale, such as ``centralised``. Their curves are grey, dashed and last.
        Against bytes and seconds, each is a horizontal line at its last value: its costs are not those of federation.
    width
        Width of the picture in inches; by default it fits the number of panels.
    font_size
        Size of the labels in points.

    Raises
    ------
    ValueError
        If there is no run, a run lacks a column, or the file's suffix is unknown.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from fedpisa.plots.picture import Picture

    panels = (
        default_columns(results.values(), measures) if y is None else [y] if isinstance(y, str) else list(y)
    )
    if not results or not panels:
        raise ValueError("nothing to plot: name at least one run and one column")
    file = picture_path(path)
    with style(font_size):
        layout = ConstrainedLayoutEngine(wspace=0.06)
        size = 0.6 + 3.6 * len(panels) if width is None else width
        figure = Picture(figsize=(size, 2.8 * min(1, max(0.5, size / (4 * len(panels))))), layout=layout)
        axes: list[Axes] = list(figure.subplots(1, len(panels), squeeze=False, sharex=True)[0])
        for ax, column in zip(axes, panels, strict=True):
            for number, (label, result) in enumerate(_without(results, references).items()):
                draw_curve(ax, result, x, column, label=label, **look(number, font_size))
            for number, label in enumerate(label for label in results if label in references):
                dashes = REFERENCE_DASHES[number % len(REFERENCE_DASHES)]
                draw_reference(ax, results[label], x, column, label=label, linestyle=dashes, **REFERENCE)
            measure = measure_of(column.replace("-", "_"), measures)
            label_axes(ax, x, column, measure)
            if target is not None and measure.column == target[0]:
                ax.axhline(target[1], color="#666666", linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.5)
                share = measure.percent
                place, text = ax.get_yaxis_transform(), f"target {target[1] * 100**share:.4g}{'%' * share}"
                ax.text(
                    0.01,
                    target[1],
                    text,
                    transform=place,
                    va="bottom",
                    fontsize="small",
                    color="#555555",
                )
        if len(results) > 1:
            # Matplotlib's own list leaves out names that begin with an underscore.
            handles = [line for line in axes[0].lines if line.get_label() in results]
            legend_below(figure, handles, [str(line.get_label()) for line in handles])
        else:
            axes[0].set_title(next(iter(results)), loc="left")
        write_picture(figure, file)
    return figure


def default_columns(
    results: Iterable[pd.DataFrame], measures: Sequence[Measure] = CLASSIFICATION
) -> list[str]:
    """Return the default columns that all runs have: the first measure on the test set, and the train loss.

    Examples
    --------
    >>> import pandas as pd
    >>> default_columns([pd.DataFrame({"round": [1], "test_loss": [0.5], "train_loss": [0.4]})])
    ['test_loss', 'train_loss']
    """
    columns = [set(result.dropna(axis="columns", how="all").columns) for result in results]
    common = set.intersection(*columns) if columns else set()
    return [name for name in (headline(measures, common).column, "train_loss") if name in common]


def draw_curve(ax: Axes, frame: pd.DataFrame, x: str, y: str, **line: Any) -> None:
    """Draw one column of one run, at the rounds in which it was measured.

    Parameters
    ----------
    ax
        Axes to draw on.
    frame
        A run's history.
    x, y
        As in `plot_curves`.
    line
        Options of `matplotlib.axes.Axes.plot`.
    """
    column = y.replace("-", "_")
    if column not in frame:
        known = ", ".join(name for name in frame.columns if name != "round")
        raise ValueError(f"there is no column {y!r} to plot: choose from {known}")
    values = frame[column].to_numpy(dtype=float)
    finite = np.isfinite(values)
    # A long curve has about eight markers, staggered between curves; a short one has a marker at every point.
    number = int(finite.sum())
    step = 1 if number <= 15 else number // 8
    shown = {"marker": "o", "markersize": 3.8, "markevery": (len(ax.lines) * step // 3 % step, step), **line}
    ax.plot(abscissa(frame, x)[finite], values[finite], **shown)


def draw_reference(ax: Axes, frame: pd.DataFrame, x: str, y: str, **line: Any) -> None:
    """Draw a reference: its curve against rounds and gradients, and its last value against bytes and seconds."""
    if _OTHER_NAMES.get(x, x) in ("rounds", "gradients"):
        draw_curve(ax, frame, x, y, **line)
    elif len(values := frame[y.replace("-", "_")].dropna()):
        ax.axhline(values.iloc[-1], **line)


def _without(results: Mapping[str, pd.DataFrame], labels: Collection[str]) -> dict[str, pd.DataFrame]:
    return {label: result for label, result in results.items() if label not in labels}


def abscissa(frame: pd.DataFrame, x: str) -> NDArray[np.float64]:
    """Return the position of every round on the x axis: its number, or a running sum.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"round": [0, 1, 2], "local_steps": [float("nan"), 20, 20]})
    >>> abscissa(frame, "gradients").tolist()
    [0.0, 20.0, 40.0]
    """
    x = _OTHER_NAMES.get(x, x)
    if x not in _X_AXES:
        raise ValueError(f"{x!r} is not an axis to plot against: choose from {', '.join(_X_AXES)}")
    if x == "rounds":
        return frame["round"].to_numpy(dtype=np.float64)
    columns = _X_AXES[x][1]
    missing = [name for name in columns if name not in frame]
    if missing:
        raise ValueError(f"the run has no column {missing[0]!r} to plot against: choose rounds")
    per_round = frame[columns].fillna(0).to_numpy(dtype=np.float64)
    total: NDArray[np.float64] = per_round.sum(axis=1).cumsum()
    return total / 1e6 if x == "bytes" else total


def label_axes(ax: Axes, x: str, y: str, measure: Measure | None = None) -> None:
    """Set the labels, units and scales of the axes; by default ``y`` is a measure of a classification."""
    from matplotlib import ticker

    x = _OTHER_NAMES.get(x, x)
    measure = measure or measure_of(y.replace("-", "_"), CLASSIFICATION)
    ax.set_xlabel(_X_AXES[x][0])
    ax.set_ylabel(_Y_LABELS.get(y, measure.name))
    ax.margins(x=0.02)
    if x == "rounds":
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, nbins=6))
    if x == "gradients" or ax.get_xscale() == "log":
        ax.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    if measure.percent:
        ax.yaxis.set_major_formatter(ticker.PercentFormatter(1))
    elif _all_positive(ax) and not measure.higher_is_better:
        ax.set_yscale("log")
        # Ticks at 1, 2 and 5 times powers of ten over few decades, at powers of ten over many.
        low, high = ax.get_ylim()
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5) if high / low < 1e3 else (1,)))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(ticker.NullFormatter())


def _all_positive(ax: Axes) -> bool:
    values = [np.asarray(line.get_ydata(), dtype=float) for line in ax.lines]
    return any(len(v) for v in values) and all((v > 0).all() for v in values)
