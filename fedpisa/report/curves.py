"""Curves over seeds: at each round the mean and the sample deviation of what was measured and spent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedpisa.plots import abscissa

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection, Group

MOST_POINTS = 400
"""Of a curve in the page; of more rounds every k-th is drawn, and the last."""

AXES: Mapping[str, str] = {
    "round": "server round",
    "bytes": "MB up and down, all clients",
    "local-steps": "local gradient steps, all clients",
    "seconds": "training time (s)",
}

CONVERGENCE: Mapping[str, str] = {
    "test_accuracy": "test accuracy",
    "test_loss": "test loss",
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


def chart(collection: Collection, columns: Mapping[str, str]) -> dict[str, Any]:
    """Return what the page draws: the columns that any run has, and a series for each group that has one.

    Against bytes, steps and seconds a point stays a round: across lies the seeds' mean of what was spent until its
    end, up their mean of the column.

    Parameters
    ----------
    collection
        The runs.
    columns
        Columns of the history, with the names that readers see.
    """
    series = [one for group in collection.groups if (one := _series(group, columns)) is not None]
    found = {name for one in series for name in one["y"]}
    metrics = [
        {"id": name, "label": label, "percent": name.endswith("accuracy")}
        for name, label in columns.items()
        if name in found
    ]
    axes = [{"id": name, "label": label} for name, label in AXES.items()]
    return {"metrics": metrics, "axes": axes, "series": series}


def _series(group: Group, columns: Iterable[str]) -> dict[str, Any] | None:
    frames = [run.result.history.set_index("round", drop=False) for run in group.drawn]
    frames = [frame for frame in frames if len(frame)]
    if not frames:
        return None
    rounds = sorted(set.intersection(*(set(frame.index.tolist()) for frame in frames)))
    # A round that only some seeds have reached would mix their means: an unfinished curve ends with the shortest.
    kept = np.asarray(_thinned(rounds))
    x = {}
    for axis in AXES:
        spent = [_at(frame.index.to_numpy(), abscissa(frame, axis), kept) for frame in frames]
        x[axis] = _rounded(np.mean(spent, axis=0))
    y, sd = {}, {}
    for column in columns:
        if not all(column in frame for frame in frames):
            continue
        values = np.stack([frame.loc[kept, column].to_numpy(dtype=float) for frame in frames])
        values[~np.isfinite(values)] = np.nan
        if np.isnan(values).all():
            continue
        y[column] = _rounded(values.mean(axis=0))
        if len(frames) > 1:
            sd[column] = _rounded(values.std(axis=0, ddof=1))
    if not y:
        return None
    note = "" if group.finished else group.note
    return {
        "split": group.split,
        "variant": group.variant,
        "n": len(frames),
        "note": note,
        "x": x,
        "y": y,
        "sd": sd,
    }


def _at(rounds: NDArray[Any], spent: NDArray[np.float64], kept: NDArray[Any]) -> NDArray[np.float64]:
    return spent[np.searchsorted(rounds, kept)]


def _thinned(rounds: Sequence[int]) -> list[int]:
    step = max(1, -(-len(rounds) // MOST_POINTS))
    kept = list(rounds[::step])
    return kept if not rounds or kept[-1] == rounds[-1] else [*kept, rounds[-1]]


def _rounded(values: NDArray[np.float64]) -> list[float | None]:
    """Return five significant digits, what a picture can show; JSON knows no NaN."""
    return [None if not np.isfinite(value) else float(f"{value:.5g}") for value in values.tolist()]
