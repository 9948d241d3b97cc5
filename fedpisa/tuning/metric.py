"""Metrics that rank the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from fedpisa.runs.run_files import Row

Metric = Literal[
    "validation_loss",
    "validation_accuracy",
    "train_loss",
    "objective",
    "test_loss",
    "test_accuracy",
    "best_test_accuracy",
    "rounds_to_target",
]


def maximized(metric: Metric) -> bool:
    """Return whether a higher value is better."""
    return metric.endswith("accuracy")


def worst(metric: Metric) -> float:
    """Return the metric of a diverged run."""
    return -math.inf if maximized(metric) else math.inf


def column_of(metric: Metric) -> str:
    """Return the column of the history that the metric uses."""
    return "test_accuracy" if metric in ("best_test_accuracy", "rounds_to_target") else metric


def uses_test_set(metric: Metric) -> bool:
    """Return whether the metric is measured on the test set, which then chooses the values."""
    return column_of(metric).startswith("test")


def uses_validation(metric: Metric) -> bool:
    """Return whether the metric is measured on validation samples."""
    return column_of(metric).startswith("validation")


def measure(
    metric: Metric, rows: Sequence[Row], num_server_rounds: int, target: float | None
) -> float | None:
    """Return the metric after some rounds, or ``None`` if it was not measured.

    The metric is the last value of its column; ``best_test_accuracy`` is the largest. ``rounds_to_target`` is the first
    round that reached ``target``. A run that did not reach it gets ``num_server_rounds + 1 - best accuracy``, and so
    ranks behind all runs that did.

    Parameters
    ----------
    metric
        Name of the metric.
    rows
        Rounds of one run so far.
    num_server_rounds
        Number of rounds of the whole run.
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
