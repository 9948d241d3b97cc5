"""Measures of a model: the columns of an evaluation, and which direction is better."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, final

PARTS: Final = ("test", "validation", "train")
"""What a model is evaluated on, as the prefix of a column."""


@final
@dataclass(frozen=True)
class Measure:
    """One column of an evaluation.

    Parameters
    ----------
    column
        Name without the part of the data, such as ``accuracy``; in a run's history it is ``test_accuracy``.
    name
        Name in sentences.
    higher_is_better
        Whether a higher value is better.
    form
        ``percent`` for a fraction in [0, 1] that is shown as per cent, ``number`` otherwise.

    Examples
    --------
    >>> ACCURACY.text(0.875), LOSS.text(0.875), LOSS.reaches(0.5, 0.6)
    ('87.50%', '0.875', True)
    """

    column: str
    name: str
    higher_is_better: bool
    form: Literal["percent", "number"] = "number"

    @property
    def percent(self) -> bool:
        """Whether values are fractions that are shown as per cent."""
        return self.form == "percent"

    @property
    def worst(self) -> float:
        """The value of a model that is worse than all others."""
        return -math.inf if self.higher_is_better else math.inf

    def rank(self, value: float) -> float:
        """Return a sort key; the best value has the smallest."""
        return -value if self.higher_is_better else value

    def reaches(self, value: float, target: float) -> bool:
        """Return whether a value is at least as good as a target."""
        return self.rank(value) <= self.rank(target)

    def text(self, value: float) -> str:
        """Return a value for a reader."""
        return f"{100 * value:.2f}%" if self.percent else f"{value:.4g}"

    def of(self, part: str) -> Measure:
        """Return the measure on a part of the data, such as ``test``."""
        return Measure(f"{part}_{self.column}", f"{part} {self.name}", self.higher_is_better, self.form)


LOSS: Final = Measure("loss", "loss", higher_is_better=False)
ACCURACY: Final = Measure("accuracy", "accuracy", higher_is_better=True, form="percent")
CLASSIFICATION: Final = (ACCURACY, LOSS)
"""The measures of runs of versions that did not store them, if they have an accuracy."""


def measure_of(column: str, measures: Iterable[Measure] = ()) -> Measure:
    """Return the measure of a column of a history.

    A column that no measure has, such as a residual, is a number of which less is better; one that ends in
    ``accuracy`` is an accuracy.

    Examples
    --------
    >>> measure_of("test_auroc", [Measure("auroc", "AUROC", True)]).name
    'test AUROC'
    >>> measure_of("primal_residual").higher_is_better, measure_of("validation_accuracy").form
    (False, 'percent')
    """
    part, _, name = column.partition("_")
    for one in measures:
        if one.column == column:
            return one
        if part in PARTS and one.column == name:
            return one.of(part)
    share = column.endswith("accuracy")
    return Measure(column, column.replace("_", " "), share, "percent" if share else "number")


def headline(measures: Sequence[Measure], columns: Iterable[str], part: str = "test") -> Measure:
    """Return the first measure that a history has on a part of the data; the loss if it has none.

    Examples
    --------
    >>> headline(CLASSIFICATION, ["round", "test_loss"]).column
    'test_loss'
    """
    found = set(columns)
    return next((m for one in measures if (m := one.of(part)).column in found), LOSS.of(part))


def as_records(measures: Iterable[Measure]) -> list[dict[str, object]]:
    """Return measures as ``run.json`` holds them."""
    return [
        {"column": m.column, "name": m.name, "higher_is_better": m.higher_is_better, "form": m.form}
        for m in measures
    ]


def from_records(records: object) -> tuple[Measure, ...]:
    """Return the measures of a ``run.json``; those of a classification if it has none.

    Raises
    ------
    ValueError
        If the records are not what `as_records` returns.

    Examples
    --------
    >>> from_records(as_records([LOSS])) == (LOSS,), from_records(None) == CLASSIFICATION
    (True, True)
    """
    if records is None:
        return CLASSIFICATION
    if not isinstance(records, list) or not records:
        raise ValueError("the measures are not a list")
    return tuple(map(_from_record, records))


def _from_record(record: object) -> Measure:
    if isinstance(record, Mapping):
        column, name, higher, form = (
            record.get(key) for key in ("column", "name", "higher_is_better", "form")
        )
        texts = isinstance(column, str) and isinstance(name, str)
        if texts and isinstance(higher, bool) and form in ("percent", "number"):
            return Measure(str(column), str(name), higher, "percent" if form == "percent" else "number")
    raise ValueError(f"a measure is {record!r:.80}, without column, name, higher_is_better and form")
