"""What trials are ranked by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from fedpisa.runs.results import Row

Metric = Literal[
    "test_accuracy", "best_test_accuracy", "test_loss", "train_loss", "objective", "rounds_to_target"
]
METRICS: tuple[str, ...] = get_args(Metric)


def maximized(metric: Metric) -> bool:
    """Return whether more is better."""
    return metric.endswith("accuracy")


def worst(metric: Metric) -> float:
    """Return what a run is worth that diverged."""
    return -math.inf if maximized(metric) else math.inf


def column_of(metric: Metric) -> str:
    """Return the column of the rounds that the metric is about."""
    return metric if metric in ("test_loss", "train_loss", "objective") else "test_accuracy"


def measure(
    metric: Metric, rows: Sequence[Row], num_server_rounds: int, target: float | None
) -> float | None:
    """Return the metric of the rounds so far, ``None`` if it has not been measured.

    It is the last value of a column, or of ``best_test_accuracy`` the largest. ``rounds_to_target`` is the first round
    that reached ``target``; a run that has not is ranked behind all that have, by its best accuracy:
    ``num_server_rounds + 1 - accuracy``.

    Parameters
    ----------
    metric
        What is measured.
    rows
        The rounds of one run.
    num_server_rounds
        How many there are to be.
    target
        The run's ``target-accuracy``.

    Examples
    --------
    >>> rows = [{"round": n, "test_accuracy": x} for n, x in enumerate([0.1, 0.6, 0.5])]
    >>> [measure(m, rows, 9, 0.6) for m in ("test_accuracy", "best_test_accuracy", "rounds_to_target")]
    [0.5, 0.6, 1.0]
    >>> measure("rounds_to_target", rows, 9, 0.75)
    9.4
    """
    column = column_of(metric)
    values = [
        (int(row["round"] or 0), float(value))
        for row in rows
        if (value := row.get(column)) is not None and math.isfinite(value)
    ]
    if not values:
        return None
    best = max(value for _, value in values)
    if metric == "best_test_accuracy":
        return best
    if metric == "rounds_to_target":
        assert target is not None
        reached = (number for number, value in values if value >= target)
        return float(next(reached, num_server_rounds + 1 - best))
    return values[-1][1]
