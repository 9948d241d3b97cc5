"""A picture of all trials: the metric against each searched key."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from fedpisa import components
from fedpisa.plots import COLOURS, MARKERS, picture_path, style, write_picture
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.space import Choices, Space
from fedpisa.tuning.trial import Trial, best_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOGARITHMIC: Final = 1e2
"""Ratio of the largest to the smallest loss above which the axis is logarithmic."""
OFF_THE_SCALE: Final = 1e4
"""Ratio to the smallest loss above which a loss is drawn at the edge, so that the others remain distinguishable."""


def plot_trials(plan: Plan, trials: Sequence[Sequence[Trial]], path: str | Path | None = None) -> Figure:
    """Draw the metric of all trials against each searched key: a row per variant, a colour per point.

    Hollow marks are pruned trials. Crosses at the edge diverged, failed or are off the scale. A ring marks the best.

    Parameters
    ----------
    plan
        The plan.
    trials
        Trials of each subject.
    path
        File to write; by default no file is written.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    variants = list(dict.fromkeys(subject.variant for subject in plan.subjects))
    points = list(dict.fromkeys(_point(subject.point) for subject in plan.subjects))
    keys = {
        v: list(dict.fromkeys(k for s in plan.subjects if s.variant == v for k in s.space)) for v in variants
    }
    columns = max(map(len, keys.values()))
    limit = _limit(plan, trials)
    with style():
        figure = Figure(
            figsize=(0.8 + 2.9 * columns, 0.7 + 2.3 * len(variants)),
            layout=ConstrainedLayoutEngine(),
        )
        axes = figure.subplots(len(variants), columns, squeeze=False, sharey=True)
        for row, variant in zip(axes, variants, strict=True):
            for ax, key in zip(row, keys[variant], strict=False):
                for subject, own_trials in zip(plan.subjects, trials, strict=True):
                    if subject.variant == variant and key in subject.space:
                        turn = points.index(_point(subject.point)) % len(COLOURS)
                        best = best_of(own_trials, plan.metric)
                        _draw(ax, key, subject.space[key], own_trials, best, plan, limit, turn)
                _scale(
                    ax, next(s.space[key] for s in plan.subjects if s.variant == variant and key in s.space)
                )
                ax.set_xlabel(key)
            for ax in row[len(keys[variant]) :]:
                ax.set_visible(False)
            row[0].set_title(variant, loc="left")
            row[0].set_ylabel(plan.metric.name.replace("_", " "))
        _scale_metric(axes[0][0], plan, trials)
        _legend(figure, points, trials, limit)
        write_picture(figure, picture_path(path))
    return figure


def _point(point: Any) -> str:
    return ", ".join(f"{key} = {components.show(value)}" for key, value in point.items())


def _draw(
    ax: Axes,
    key: str,
    space: Space,
    trials: Sequence[Trial],
    best: Trial | None,
    plan: Plan,
    limit: float,
    turn: int,
) -> None:
    colour = COLOURS[turn]
    look: dict[str, Any] = {"linestyle": "none", "marker": MARKERS[turn], "color": colour, "markersize": 4.5}
    for state, filled in (("pruned", "none"), ("finished", colour)):
        shown = [
            (trial.keys[key], trial.metric)
            for trial in trials
            if trial.state == state and _fits(trial, limit)
        ]
        x = [_position(space, value) for value, _ in shown]
        ax.plot(
            x,
            [np.nan if metric is None else metric for _, metric in shown],
            **{**look, "markerfacecolor": filled},
        )
    edge = 0.02 if plan.metric.higher_is_better else 0.98
    ended = [trial for trial in trials if trial.state != "running"]
    lost = [_position(space, trial.keys[key]) for trial in ended if not _fits(trial, limit)]
    look = {**look, "marker": "x", "markersize": 4.5}
    if lost:
        ax.plot(lost, [edge] * len(lost), transform=ax.get_xaxis_transform(), **look)
    if best is not None and best.metric is not None:
        ring = {**look, "marker": "o", "markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.3}
        ax.plot([_position(space, best.keys[key])], [best.metric], **ring)


def _limit(plan: Plan, trials: Sequence[Sequence[Trial]]) -> float:
    """Return the largest loss on the scale; infinite for accuracies."""
    reached = _reached(trials)
    if plan.metric.higher_is_better or not reached or min(reached) <= 0:
        return math.inf
    return OFF_THE_SCALE * min(reached)


def _fits(trial: Trial, limit: float) -> bool:
    return trial.metric is not None and math.isfinite(trial.metric) and trial.metric <= limit


def _reached(trials: Sequence[Sequence[Trial]]) -> list[float]:
    metrics = [trial.metric for trial in chain(*trials) if trial.metric is not None]
    return [metric for metric in metrics if math.isfinite(metric)]


def _position(space: Space, value: object) -> float:
    """Return the coordinate of a value: the number, or the index of another choice."""
    if isinstance(space, Choices) and not space.numbers:
        return float(space.values.index(value))
    assert isinstance(value, int | float)
    return float(value)


def _scale(ax: Axes, space: Space) -> None:
    """Scale a key's axis: logarithmic if the range is, or if the choices span a decade."""
    from matplotlib.ticker import (
        FixedFormatter,
        FixedLocator,
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        NullLocator,
    )

    ax.margins(x=0.06)
    if isinstance(space, Choices):
        places = [_position(space, value) for value in space.values]
        if space.numbers and min(places) > 0 and max(places) >= 10 * min(places):
            ax.set_xscale("log")
        ax.xaxis.set_major_locator(FixedLocator(places))
        ax.xaxis.set_major_formatter(
            FixedFormatter([components.show(value).strip("'") for value in space.values])
        )
        ax.xaxis.set_minor_locator(NullLocator())
        return
    ax.margins(x=0)
    low, high = space.low, space.high
    if not space.log:
        ax.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=space.whole))
    else:
        ax.set_xlim(low * (low / high) ** 0.06, high * (high / low) ** 0.06)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if space.high / space.low < 1e2 else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())


def _scale_metric(ax: Axes, plan: Plan, trials: Sequence[Sequence[Trial]]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

    ax.margins(y=0.1)
    reached = [metric for metric in _reached(trials) if metric <= _limit(plan, trials)]
    if plan.metric.higher_is_better:
        ax.yaxis.set_major_formatter(PercentFormatter(1))
    elif reached and min(reached) > 0 and max(reached) > LOGARITHMIC * min(reached):
        ax.set_yscale("log")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, points: Sequence[str], trials: Sequence[Sequence[Trial]], limit: float) -> None:
    """Add a legend of the colours and marks in use."""
    from matplotlib.lines import Line2D

    states = {trial.state for trial in chain(*trials)}
    grey: dict[str, Any] = {"linestyle": "none", "color": "#444444", "markersize": 4.5}
    handles = [Line2D([], [], marker="o", label="trained to the end", **grey)]
    if "pruned" in states:
        handles.append(Line2D([], [], marker="o", markerfacecolor="none", label="pruned", **grey))
    if any(not _fits(trial, limit) for trial in chain(*trials) if trial.state != "running"):
        label = "diverged, failed" if math.isinf(limit) else "diverged, failed, off scale"
        handles.append(Line2D([], [], marker="x", label=label, **grey))
    handles.append(
        Line2D([], [], marker="o", **{**grey, "markersize": 9, "markerfacecolor": "none"}, label="best")
    )
    if len(points) > 1:
        for turn, point in enumerate(points):
            look = {**grey, "color": COLOURS[turn % len(COLOURS)], "marker": MARKERS[turn % len(MARKERS)]}
            handles.append(Line2D([], [], label=point, **look))
    figure.legend(handles=handles, loc="outside upper center", ncols=max(2, int(figure.get_figwidth() / 2.1)))
