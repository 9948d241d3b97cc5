"""The figure of a study: means and bands over seeds, a line per variant, a panel per split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpisa.plots.curves import Abscissa, abscissa, label_axes
from fedpisa.plots.intervals import mean_interval
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Band = Literal["deviation", "interval"]

_MOST_ACROSS = 3
"""Panels side by side, unless the width is given."""


@final
class _Group(NamedTuple):
    """The runs of one line in one panel.

    Parameters
    ----------
    runs
        Histories of the runs that are drawn: the finished ones or, if there are none, the others.
    finished
        Whether they are finished.
    note
        What a reader must know about them.
    is_reference
        Whether they only give scale.
    """

    runs: list[pd.DataFrame]
    finished: bool
    note: str
    is_reference: bool


def plot_study(
    frame: pd.DataFrame,
    panels: Sequence[str] = (),
    lines: Sequence[str] = ("variant",),
    x: Abscissa | str | Sequence[Abscissa | str] = "rounds",
    y: str | Sequence[str] | None = None,
    path: str | Path | None = None,
    *,
    band: Band = "deviation",
    labels: Mapping[str, str] | None = None,
    references: Collection[str] = (),
    width: float | None = None,
    font_size: float = 9.0,
    target: tuple[str, float] | None = None,
    measures: Sequence[Measure] = CLASSIFICATION,
) -> Figure:
    """Draw the mean over seeds, with a band, of every variant of a study.

    The mean is over the finished runs and over the same seeds at every round, so a line ends with its shortest run. If
    no run of a line finished, the mean of the others is dotted. A note under the panels says both. Against bytes,
    gradients or seconds, a point's x is the seeds' mean up to the end of the round, and the axis is logarithmic if a
    line ends before a fifth of another. A single seed has no band.

    Parameters
    ----------
    frame
        Rounds of all runs, with the columns ``seed`` and ``status``, as from `fedpisa.studies.study.frame`.
    panels
        Columns whose values divide the runs into panels.
    lines
        Columns whose values divide the runs into lines, the variant's name first.
    x
        ``rounds``, or the running sum of ``bytes`` (both ways), ``gradients``, ``seconds``,
        ``simulated-seconds`` or ``env-steps``.
        With several of them, every column is drawn against each.
    y
        Columns to draw; by default the first measure that the runs have on the test set.
    path
        File of the picture, ``.pdf``, ``.svg``, ``.pgf`` or ``.png``; not written by default.
    band
        ``deviation``: one sample standard deviation up and down. ``interval``: the 95% confidence interval of the mean,
        see `mean_interval`. The band of a share, such as an accuracy, ends at 0 and at 100%, and that of another
        positive column does not go below the least run.
    labels
        Texts of the legend by the variant's name; other variants keep their names.
    references
        Variants that only give scale. Their lines are grey, dashed and last. Against bytes and seconds they are
        horizontal, because their costs are not those of federation.
    width
        Width of the picture in inches; by default it fits the number of panels.
    font_size
        Size of the labels in points; ticks and notes are one point smaller.
    target
        Column and value to mark with a line.
    measures
        The runs' measures, which give columns their names, scales and defaults.

    Raises
    ------
    ValueError
        If there is nothing to draw, a column or label is unknown, or the picture's name has another suffix.
    """
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    from fedpisa.plots.picture import Picture

    file = picture_path(path)
    columns = [_default_column(frame, measures)] if y is None else [y] if isinstance(y, str) else list(y)
    axes = list(itertools.product(columns, [x] if isinstance(x, str) else list(x)))
    if not axes:
        raise ValueError("nothing to plot: name at least one axis and one column")
    for column in columns:
        if column not in frame:
            keys = {*panels, *lines, "round", "seed"}
            numbers = frame.drop(columns=[*keys & {*frame.columns}]).select_dtypes("number")
            known = ", ".join(map(str, numbers.columns))
            raise ValueError(f"there is no column {column!r} to plot: choose from {known}")
    if band not in ("deviation", "interval"):
        raise ValueError(f"{band!r} is not a band: choose deviation or interval")
    groups = _groups(frame, panels, lines, labels or {}, references)
    titles = list(dict.fromkeys(panel for panel, _ in groups))
    apart = {line: group.is_reference for (_, line), group in groups.items()}
    names = sorted(apart, key=lambda name: apart[name])
    looks = _looks(apart, font_size)
    uneven = {against: _differ_in_cost(groups.values(), against) for _, against in axes}
    across, down = _grid(len(titles), len(axes), width, font_size)
    with style(font_size):
        size = 0.4 + 2.9 * across + (across == 1) if width is None else width
        panel_width = size / across
        # A character is about 0.62 of the font's size wide; an axis begins after its tick labels.
        characters = max(8, int((panel_width - 0.06 * font_size) * 72 / (0.62 * font_size)))
        headings = [fill(title, characters) for title in titles]
        texts = 1.5 + max(heading.count("\n") + 1 for heading in headings)
        line = 1.35 * font_size / 72
        height = down * (0.55 * panel_width + texts * line) + 2 * line
        figure = Picture(figsize=(size, height), layout=ConstrainedLayoutEngine(wspace=0.04))
        grid = figure.subplots(down, across, squeeze=False)
        for ax in grid.flat:
            ax.set_visible(False)
        blocks = down // len(axes) if len(titles) > 1 else down
        used: dict[int, tuple[str, str]] = {}
        leaders: dict[str, Axes] = {}
        for number, (column, against) in enumerate(axes):
            for place, (title, heading) in enumerate(zip(titles, headings, strict=True)):
                at = number * blocks * across + place if len(titles) > 1 else number
                ax = grid.flat[at]
                ax.set_visible(True)
                measure = measure_of(column, measures)
                if measure.percent and column in leaders:
                    ax.sharey(leaders[column])
                leaders.setdefault(column, ax)
                if uneven[against]:
                    ax.set_xscale("log")
                ends = [
                    _draw(ax, groups[title, name], against, measure, band, looks[name])
                    for name in names
                    if (title, name) in groups
                ]
                label_axes(ax, against, column, measure)
                if ax.get_xscale() == "linear":
                    ax.locator_params(axis="x", nbins=max(2, min(6, int(18 * panel_width / font_size))))
                _limit(ax, [end for end in ends if end is not None])
                if target is not None and column == target[0]:
                    ax.axhline(target[1], color="#666666", linewidth=0.9, linestyle=(0, (3, 2)), zorder=1.5)
                ax.set_xlabel(fill(ax.get_xlabel(), characters + 2))
                ax.set_ylabel(fill(ax.get_ylabel(), max(9, int(panel_width * 62 / font_size))))
                if len(titles) > 1:
                    ax.set_title(heading, loc="left")
                used[at] = column, against
        for at, (column, against) in used.items():
            if at % across and used[at - 1][0] == column:
                grid.flat[at].set_ylabel("")
            below = [other for other in used if other > at and other % across == at % across]
            if below and used[below[0]][1] == against:
                grid.flat[at].set_xlabel("")
        handles = [_handle(looks[name]) for name in names]
        notes = [
            ", ".join(part for part in (line, title) if part) + f": {group.note}"
            for (title, line), group in groups.items()
            if group.note
        ]
        legend_below(figure, handles, names, ". ".join(notes))
        write_picture(figure, file)
    return figure


def _default_column(frame: pd.DataFrame, measures: Sequence[Measure]) -> str:
    return headline(measures, map(str, frame.dropna(axis="columns", how="all").columns)).column


def _groups(
    frame: pd.DataFrame,
    panels: Sequence[str],
    lines: Sequence[str],
    labels: Mapping[str, str],
    references: Collection[str],
) -> dict[tuple[str, str], _Group]:
    """Return the runs by the titles of their panels and the names of their lines, in order of appearance."""
    if frame.empty:
        raise ValueError("nothing to plot: there is no run that has started")
    variants = frame[lines[0]].astype(str)
    unknown = [name for name in labels if name not in set(variants)]
    if unknown:
        raise ValueError(
            f"there is no variant {unknown[0]!r} to label: choose from {', '.join(dict.fromkeys(variants))}"
        )
    of_panel = _assignments(frame, panels)
    rest = _assignments(frame, lines[1:])
    of_line = variants.map(lambda name: labels.get(name, name)) + rest.map(
        lambda text: f" ({text})" if text else ""
    )
    found: dict[tuple[str, str], _Group] = {}
    for (panel, line), members in frame.groupby([of_panel, of_line], sort=False):
        runs = [run for _, run in members.groupby("seed", sort=False)]
        finished = [run for run in runs if run["status"].iloc[0] == "finished"]
        found[str(panel), str(line)] = _Group(
            finished or runs,
            bool(finished),
            _note(runs, finished),
            str(members[lines[0]].iloc[0]) in references,
        )
    return found


def _assignments(frame: pd.DataFrame, keys: Sequence[str]) -> pd.Series[str]:
    """Return ``key = value`` of the keys with several values, for every row."""
    telling = [key for key in keys if len(frame[key].unique()) > 1]

    def show(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    texts = [
        ", ".join(f"{key}\u00a0=\u00a0{show(value)}" for key, value in zip(telling, row, strict=True))
        for row in frame[telling].to_numpy()
    ]
    return pd.Series(texts, index=frame.index)


def _note(runs: Sequence[pd.DataFrame], finished: Sequence[pd.DataFrame]) -> str:
    """Return which runs are not in the mean, and where it ends if the runs differ in length."""
    words = {"running": "unfinished"}
    statuses = [words.get(str(run["status"].iloc[0]), str(run["status"].iloc[0])) for run in runs]
    others = [f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses) if s != "finished"]
    parts = []
    if others:
        parts.append(
            f"{', '.join(others)} of {len(runs)} runs, "
            + ("not in the mean" if finished else "dotted because none finished")
        )
    ends = {int(run["round"].max()) for run in finished}
    if len(ends) > 1:
        parts.append(f"ends at round {min(ends)} with the shortest run")
    return "; ".join(parts)


def _grid(panels: int, columns: int, width: float | None, font_size: float) -> tuple[int, int]:
    """Return the numbers of panels across and down; each column begins a row, unless it has one panel alone."""
    several = panels if panels > 1 else columns
    most = _MOST_ACROSS if width is None else max(1, int(width / (0.19 * font_size)))
    rows = math.ceil(several / min(several, most))
    return math.ceil(several / rows), rows * (columns if panels > 1 else 1)


def _draw(
    ax: Axes, group: _Group, x: str, measure: Measure, band: Band, line: Mapping[str, Any]
) -> tuple[float, float] | None:
    """Draw a mean and its band; return the least mean and the largest end of the band, if there is a point."""
    found = _mean(group.runs, x, measure.column)
    if found is None:
        return None
    at, mean, sd, least = found
    if ax.get_xscale() == "log":
        shown = at > 0
        at, mean, sd, least = at[shown], mean[shown], None if sd is None else sd[shown], least[shown]
        if not len(at):
            return None
    if group.is_reference and x in ("bytes", "seconds", "simulated-seconds"):
        ax.axhline(mean[-1], **line)
        return None
    step = max(1, len(at) // 6)
    drawn = {**line, "markevery": (len(ax.lines) * step // 3 % step, step)}
    if not group.finished:
        drawn |= {"linestyle": ":", "linewidth": 0.6 * line["linewidth"]}
    ax.plot(at, mean, **drawn)
    high = mean
    if sd is not None:
        if band == "interval":
            low, high = mean_interval(mean, sd, len(group.runs), share=measure.percent)
        else:
            low, high = mean - sd, mean + sd
        if measure.percent:
            low, high = np.maximum(low, 0), np.minimum(high, 1)
        elif (least > 0).all():  # on a logarithmic axis a band that reaches 0 would fill the panel
            low = np.maximum(low, least)
        ax.fill_between(at, low, high, color=line["color"], alpha=0.18, linewidth=0)
    return float(mean.min()), float(high.max())


def _mean(
    runs: Sequence[pd.DataFrame], x: str, column: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64]] | None:
    """Return positions, means, deviations and least values at the rounds in which all runs measured the column."""
    positions, values = [], []
    for run in runs:
        measured = pd.to_numeric(run[column], errors="coerce").replace([np.inf, -np.inf], np.nan)
        one = pd.DataFrame({"x": abscissa(run, x), "y": measured.to_numpy()}, index=run["round"].to_numpy())
        one = one.dropna()
        positions.append(one["x"])
        values.append(one["y"])
    rounds = sorted(set.intersection(*(set(one.index.tolist()) for one in values)))
    if not rounds:
        return None
    table = np.stack([one.loc[rounds].to_numpy(dtype=np.float64) for one in values])
    at = np.mean([one.loc[rounds].to_numpy(dtype=np.float64) for one in positions], axis=0)
    deviation = table.std(axis=0, ddof=1) if len(runs) > 1 else None
    return at, table.mean(axis=0), deviation, table.min(axis=0)


def _limit(ax: Axes, ends: Sequence[tuple[float, float]]) -> None:
    """On a logarithmic axis, cut off bands that reach down to 0 far below the means."""
    if ends and ax.get_yscale() == "log":
        least, most = min(low for low, _ in ends), max(high for _, high in ends)
        room = (most / least) ** 0.05
        ax.set_ylim(max(ax.get_ylim()[0], least / room**2), most * room)


def _differ_in_cost(groups: Iterable[_Group], x: str) -> bool:
    """Return whether one line ends before a fifth of another on this axis."""
    if x in ("rounds", "round"):
        return False
    ends = [
        float(np.mean([abscissa(run, x)[-1] for run in group.runs]))
        for group in groups
        if not group.is_reference
    ]
    return bool(ends) and 0 < 5 * min(ends) < max(ends)


def _looks(apart: Mapping[str, bool], font_size: float) -> dict[str, dict[str, Any]]:
    """Return the look of each line, by whether it is a reference."""
    lines = [name for name, is_reference in apart.items() if not is_reference]
    found = {name: look(number, font_size) for number, name in enumerate(lines)}
    dashes = itertools.cycle(REFERENCE_DASHES)
    return found | {name: {**REFERENCE, "linestyle": next(dashes)} for name in apart if name not in found}


def _handle(line: Mapping[str, Any]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **line)
