"""Metrics that rank the trials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

from fedpisa.components.names import nearest
from fedpisa.runs.run_files import Row
from fedpisa.tasks.measures import CLASSIFICATION, Measure, measure_of

ROUNDS: Final = "rounds_to_target"
_BEST: Final = "best_"
_TRAINING: Final = ("train_loss", "objective")


@final
@dataclass(frozen=True)
class Metric:
    """What ranks the trials: a column of the history, and which of its values counts.

    Parameters
    ----------
    name
        A column, for its last value; ``best_`` and a column on the test set, for its best value; or
        ``rounds_to_target``.
    of_column
        The measure of the column.

    Examples
    --------
    >>> [str(one) for one in map(Metric.named, ("validation_loss", "best_test_accuracy")) if one.higher_is_better]
    ['best_test_accuracy']
    """

    name: str
    of_column: Measure

    @classmethod
    def named(
        cls, name: str, measures: Sequence[Measure] = CLASSIFICATION, target: str = "test_accuracy"
    ) -> Metric:
        """Return the metric of a name, for a task's measures; ``target`` is the column of the runs' target."""
        column = target if name == ROUNDS else name.removeprefix(_BEST)
        return cls(name, measure_of(column, measures))

    def __str__(self) -> str:
        return self.name

    @property
    def column(self) -> str:
        """The column of the history that the metric uses."""
        return self.of_column.column

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value is better."""
        return self.name != ROUNDS and self.of_column.higher_is_better

    @property
    def percent(self) -> bool:
        """Whether values are fractions that are shown as per cent."""
        return self.name != ROUNDS and self.of_column.percent

    @property
    def worst(self) -> float:
        """The metric of a diverged run."""
        return -math.inf if self.higher_is_better else math.inf

    @property
    def uses_test_set(self) -> bool:
        """Whether the metric is measured on the test set, which then chooses the values."""
        return self.column.startswith("test_")

    @property
    def uses_validation(self) -> bool:
        """Whether the metric is measured on validation samples."""
        return self.column.startswith("validation_")

    def rank(self, value: float) -> float:
        """Return a sort key; the best value has the smallest."""
        return -value if self.higher_is_better else value


def require_known(name: str, measures: Sequence[Measure], data: str) -> None:
    """Raise a ValueError unless a metric of this name is measured.

    Parameters
    ----------
    name
        The metric.
    measures
        The task's measures.
    data
        Name of the data set in the message.
    """
    columns = [measure.of(part).column for part in ("validation", "test") for measure in measures]
    known = [*columns, *(_BEST + one for one in columns if one.startswith("test_")), *_TRAINING, ROUNDS]
    if name not in known:
        raise ValueError(
            f"metric = {name!r} is not measured on {data!r}{nearest(name, known)}: take one of {', '.join(known)}"
        )


def measure(
    metric: Metric, rows: Sequence[Row], num_server_rounds: int, target: float | None
) -> float | None:
    """Return the metric after some rounds, or ``None`` if it was not measured.

    The metric is the last value of its column, or the best. ``rounds_to_target`` is the first round that reached
    ``target``. A run that did not reach it gets a number above ``num_server_rounds``, the larger the farther its best
    value is from the target, and so ranks behind all runs that did.

    Parameters
    ----------
    metric
        The metric.
    rows
        Rounds of one run so far.
    num_server_rounds
        Number of rounds of the whole run.
    target
        The value that the run is to reach.

    Examples
    --------
    >>> rows = [{"round": n, "test_accuracy": x} for n, x in enumerate([0.1, 0.6, 0.5])]
    >>> names = ("test_accuracy", "best_test_accuracy", "rounds_to_target")
    >>> [measure(Metric.named(name), rows, 9, 0.6) for name in names]
    [0.5, 0.6, 1.0]
    >>> measure(Metric.named("rounds_to_target"), rows, 9, 0.75)
    9.4
    """
    of_column = metric.of_column
    values = [
        (int(row["round"] or 0), float(value))
        for row in rows
        if (value := row.get(metric.column)) is not None and math.isfinite(value)
    ]
    if not values:
        return None
    best = min((value for _, value in values), key=of_column.rank)
    if metric.name.startswith(_BEST):
        return best
    if metric.name == ROUNDS:
        assert target is not None
        reached = (number for number, value in values if of_column.reaches(value, target))
        return float(next(reached, num_server_rounds + _missed(of_column, best, target)))
    return values[-1][1]


def _missed(of_column: Measure, best: float, target: float) -> float:
    """Return how far a run stays from a target: for a share what it lacks to 1, for a number between 1 and 2."""
    if of_column.percent:
        return 1 - best
    gap = abs(best - target)
    return 1 + gap / (1 + gap)
