"""Curves over seeds: the mean and the sample deviation of each column at each round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpisa.plots import abscissa
from fedpisa.tasks.measures import measure_of

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection, Group

MOST_POINTS = 400
"""Maximum points of a curve; of more rounds, every k-th and the last are drawn."""

AXES: Mapping[str, str] = {
    "round": "server round",
    "bytes": "MB up and down, all clients",
    "local-steps": "local gradient steps, all clients",
    "seconds": "training time (s)",
}

_OBJECTIVE: Mapping[str, str] = {
    "train_loss": "train loss",
    "objective": "global objective",
    "gradient_norm": "gradient norm of the objective",
}

RESIDUALS: Mapping[str, str] = {
    "primal_residual": "primal residual",
    "dual_residual": "dual residual",
    "stationarity": "stationarity ‖Σ α π − λ w‖",
    "augmented_lagrangian": "augmented Lagrangian",
    "exact_augmented_lagrangian": "exact augmented Lagrangian",
}


def residuals(collection: Collection) -> dict[str, str]:
    """Return the columns of residuals with their labels; those of players have the player's name in front."""
    columns = dict.fromkeys(column for run in collection.runs for column in run.result.history)
    of_players = {
        str(column): f"{player}: {RESIDUALS[name]}"
        for column in columns
        for player, _, name in [str(column).partition("/")]
        if name in RESIDUALS
    }
    return {**RESIDUALS, **of_players}


def convergence(collection: Collection) -> dict[str, str]:
    """Return the columns that show convergence, with their labels: the runs' measures first."""
    measures = dict.fromkeys(measure for run in collection.runs for measure in run.result.measures)
    named = [measure.of(part) for part in ("test", "validation") for measure in measures]
    return {**{measure.column: measure.name for measure in named}, **_OBJECTIVE}


def chart(collection: Collection, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return the data that the page draws: the measured columns, and a series for each group.

    Each point is a round. Its x is the seeds' mean of the bytes, steps or seconds up to the end of the round, its y
    the seeds' mean of the column.

    Parameters
    ----------
    collection
        The runs.
    columns
        Columns of the history, with their labels.
    """
    series = [one for group in collection.groups if (one := _series(group, columns)) is not None]
    found = {name for one in series for name in one["y"]}
    of_runs = [measure for run in collection.runs for measure in run.result.measures]
    metrics = []
    for name, label in columns.items():
        if name in found:
            measure = measure_of(name, of_runs)
            about = {"percent": measure.percent, "log": not measure.higher_is_better}
            metrics.append({"id": name, "label": label, **about})
    axes = [{"id": name, "label": label} for name, label in AXES.items()]
    return {"metrics": metrics, "axes": axes, "series": series}


def _series(group: Group, columns: Iterable[str]) -> dict[str, Any] | None:
    frames = [run.result.history.set_index("round", drop=False) for run in group.drawn]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return None
    rounds = sorted(set.intersection(*(set(frame.index.tolist()) for frame in frames)))
    # The mean is over the same seeds at every round, so the curve ends with the shortest run.
    kept = np.asarray(_thinned(rounds))
    x = {}
    for axis in AXES:
        values = [abscissa(f, axis)[np.searchsorted(f.index.to_numpy(), kept)] for f in frames]
        x[axis] = _rounded(np.mean(values, axis=0))
    y, sd = {}, {}
    for column in columns:
        if not all(column in frame for frame in frames):
            continue
        # A player's column has no value in the rounds of the others.
        filled = [frame[column].ffill() if "/" in column else frame[column] for frame in frames]
        measured = np.stack([one.loc[kept].to_numpy(dtype=float) for one in filled])
        measured[~np.isfinite(measured)] = np.nan
        if np.isnan(measured).all():
            continue
        y[column] = _rounded(measured.mean(axis=0))
        if len(frames) > 1:
            sd[column] = _rounded(measured.std(axis=0, ddof=1))
    if not y:
        return None
    about = {"split": group.split, "variant": group.variant, "n": len(frames)}
    return {**about, "note": "" if group.finished else group.note, "x": x, "y": y, "sd": sd}


def _thinned(rounds: Sequence[int]) -> list[int]:
    step = max(1, -(-len(rounds) // MOST_POINTS))
    kept = list(rounds[::step])
    return kept if not rounds or kept[-1] == rounds[-1] else [*kept, rounds[-1]]


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Return values with five significant digits, and ``None`` for NaN, which JSON lacks."""
    return [None if not np.isfinite(value) else float(f"{value:.5g}") for value in values.tolist()]
