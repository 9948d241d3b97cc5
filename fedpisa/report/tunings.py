"""What tuning cost and what it found, read from the CSV files in the directories of ``fedpisa tune``."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final, TypeVar, final, get_args

from fedpisa.components import total
from fedpisa.report.runs import text_of
from fedpisa.storage.files import refuse_link
from fedpisa.tasks.measures import CLASSIFICATION, PARTS, Measure, measure_of
from fedpisa.tasks.scores import MEASURES
from fedpisa.tuning.metric import Metric
from fedpisa.tuning.trial import State

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection

TRIALS: Final = "trials.csv"
_MEASURED: Final = ("validation_accuracy", "rounds", "gradients", "seconds", "error")
"""Columns between the metric and the searched keys; earlier versions lack some."""
_T = TypeVar("_T")


@final
@dataclass(frozen=True)
class TrialRow:
    """A row of ``trials.csv``; what an earlier version did not store is ``None``."""

    number: int
    state: State
    metric: float | None
    accuracy: float | None
    rounds: float | None
    gradients: float | None
    seconds: float | None
    keys: Mapping[str, str]


@final
@dataclass(frozen=True)
class Tuned:
    """The trials of one variant at one point of the sweep.

    Parameters
    ----------
    metric
        What ranks the trials.
    variant, point
        Name of the variant, and the swept keys.
    trials
        All trials that ended.
    at_edge, extensions
        Keys whose best value lies at an edge of its space, and how often spaces were widened; ``None`` if unknown.
    directory
        The tuning's directory.
    """

    metric: Metric
    variant: str
    point: Mapping[str, str]
    trials: Sequence[TrialRow]
    at_edge: str | None
    extensions: str | None
    directory: Path

    @property
    def best(self) -> TrialRow | None:
        """The best finished trial, the first of equals."""
        return min(
            self._finished, key=lambda one: (self.metric.rank(one.metric or 0), one.number), default=None
        )

    @property
    def median(self) -> float | None:
        """Median metric of the finished trials."""
        found = [one.metric for one in self._finished if one.metric is not None]
        return median(found) if found else None

    @property
    def _finished(self) -> list[TrialRow]:
        return [one for one in self.trials if one.state == "finished" and one.metric is not None]

    def total(self, name: str) -> float | None:
        """Return the sum of ``rounds``, ``gradients`` or ``seconds``; ``None`` if a trial did not store it."""
        values = [getattr(one, name) for one in self.trials]
        return None if None in values else total(values)

    @property
    def point_text(self) -> str:
        """The swept keys in words."""
        return ", ".join(f"{key}={short(value)}" for key, value in self.point.items())

    @property
    def values(self) -> str:
        """The best values in words."""
        return (
            ", ".join(f"{key}={short(value)}" for key, value in self.best.keys.items()) if self.best else ""
        )


@final
@dataclass(frozen=True)
class Tuning:
    """A tuning.

    Parameters
    ----------
    directory
        Its directory.
    metric
        What ranks the trials.
    tuned
        The variants, at each point of the sweep.
    seeds
        Seeds of the trials, as text; empty if unknown.
    """

    directory: Path
    metric: Metric
    tuned: Sequence[Tuned]
    seeds: str


def find(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[Tuning], list[str]]:
    """Return the tunings in some directories, at any depth, and a warning for each file that cannot be read."""
    files = {file.resolve(): file for path in paths for file in sorted(Path(path).rglob(TRIALS))}
    found: list[Tuning] = []
    warnings: list[str] = []
    for file in files.values():
        summary = file.with_name("summary.csv")
        about = _attempt(_rows, summary, warnings) if os.path.lexists(summary) else None
        one = _attempt(partial(_tuning, summary=about or []), file, warnings)
        if one is not None:
            found.append(one)
    return found, warnings


def _attempt(read: Callable[[Path], _T], file: Path, warnings: list[str]) -> _T | None:
    """Return what a file contains, or add a warning."""
    try:
        return read(file)
    except (ValueError, OSError, csv.Error) as error:
        cause = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = " ".join(cause.split())
        warnings.append(f"{file} cannot be read: {reason}: repeat fedpisa tune, which writes it anew")
        return None


def cautions(tunings: Sequence[Tuning], collection: Collection) -> list[str]:
    """Return what a reader must know before trusting that the runs use the best values, and that these are fair."""
    lines = []
    for tuning in tunings:
        if tuning.metric.uses_test_set:
            lines.append(
                f"{tuning.directory}: the values are chosen on the test set, by {tuning.metric}: the results of runs "
                "with these values are optimistic"
            )
        if shared := sorted(
            {str(run.seed) for run in collection.runs} & set(tuning.seeds.split(", ")), key=int
        ):
            lines.append(
                f"{tuning.directory}: the values are chosen by runs of seed {', '.join(shared)}, and this report has "
                "runs of the same seed: their results are optimistic"
            )
        for one in tuning.tuned:
            runs = [run for run in collection.runs if run.name == one.variant and _has(run.keys, one.point)]
            if one.best and runs and not any(_has(run.keys, one.best.keys) for run in runs):
                where = f" at {one.point_text}" if one.point else ""
                lines.append(
                    f"{one.variant}{where}: no run has the best values of {tuning.directory}: {one.values}"
                )
    return lines


def picture(tuning: Tuning) -> dict[str, Any]:
    """Return what the page draws: a panel for each variant and each searched key that has numbers."""
    points = list(dict.fromkeys(one.point_text for one in tuning.tuned))
    panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in tuning.tuned:
        for trial in one.trials:
            about = {
                "trial": trial.number,
                "state": trial.state,
                "point": points.index(one.point_text),
                "metric": _finite(trial.metric),
                "accuracy": _finite(trial.accuracy),
                "values": ", ".join(f"{key}={short(value)}" for key, value in trial.keys.items()),
                "cost": ", ".join(
                    f"{value:,.0f} {name}"
                    for name in ("rounds", "gradients")
                    if (value := getattr(trial, name))
                ),
                "best": trial is one.best,
            }
            for key, text in trial.keys.items():
                x = _finite(as_number(text))
                panels.setdefault((one.variant, key), []).append(about | {"x": x})
    label, percent = tuning.metric.name.replace("_", " "), tuning.metric.percent
    metrics: list[dict[str, object]] = [{"id": "metric", "label": label, "percent": percent}]
    if any(trial.accuracy is not None for one in tuning.tuned for trial in one.trials):
        metrics.append({"id": "accuracy", "label": "validation accuracy", "percent": True})
    return {
        "title": tuning.directory.name,
        "metrics": metrics,
        "points": points,
        "panels": [
            {"variant": variant, "key": key, "trials": trials}
            for (variant, key), trials in panels.items()
            if all(one["x"] is not None for one in trials) and len({one["x"] for one in trials}) > 1
        ],
    }


def as_number(text: str) -> float | None:
    """Return a cell as a number, or ``None`` if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def short(text: str) -> str:
    """Return a cell of a searched key with four significant digits if it is a number."""
    value = as_number(text)
    return text if value is None else f"{value:.4g}"


def _has(keys: Mapping[str, object], values: Mapping[str, str]) -> bool:
    """Return whether a run's keys have the values of cells."""
    for key, text in values.items():
        own, value = text_of(keys[key]) if key in keys else "", as_number(text)
        number = as_number(own)
        if value is None or number is None:
            if own.lower() != text.lower():  # True is "true" in a configuration
                return False
        elif not math.isclose(value, number, rel_tol=1e-9):
            return False
    return True


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


# ------------------------------------------------------------------------------------------- reading the files


def _rows(file: Path) -> list[dict[str, str]]:
    with refuse_link(file).open(encoding="utf-8", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        rows = list(reader)
    for number, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"row {number} has another number of cells than the head")
    return rows


def _tuning(file: Path, summary: Sequence[Mapping[str, str]]) -> Tuning:
    rows = _rows(file)
    if not rows:
        raise ValueError("it has no trial")
    head = list(rows[0])
    if head[0] != "variant" or not {"trial", "state"} <= set(head) or head[-1] == "state":
        raise ValueError(f"its head has the columns {', '.join(head)}, not those of a tuning")
    metric = _metric(head[head.index("state") + 1], summary)
    sweep, searched = head[1 : head.index("trial")], head[head.index(metric.name) + 1 :]
    searched = [key for key in searched if key not in _MEASURED]
    by_subject: dict[tuple[str, ...], list[TrialRow]] = {}
    for number, row in enumerate(rows, 2):
        try:
            trial = _trial(row, metric, searched)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        trials = by_subject.setdefault((row["variant"], *(row[key] for key in sweep)), [])
        if trial.state != "running":
            trials.append(trial)
    about = {(row.get("variant"), *(row.get(key) for key in sweep)): row for row in summary}
    tuned = []
    for (variant, *point), trials in by_subject.items():
        one = about.get((variant, *point), {})
        swept = dict(zip(sweep, point, strict=True))
        edges, extensions = one.get("at_edge"), one.get("extensions")
        tuned.append(Tuned(metric, variant, swept, trials, edges, extensions, file.parent))
    return Tuning(file.parent, metric, tuned, next((row.get("seeds", "") for row in summary), ""))


def _metric(name: str, summary: Sequence[Mapping[str, str]]) -> Metric:
    """Return the metric of a column; your own metrics have their direction in ``summary.csv``."""
    known = (*CLASSIFICATION, *MEASURES.values())
    metric = Metric.named(name, known)
    columns = [measure.of(part).column for measure in known for part in PARTS]
    higher = next((row["higher_is_better"] for row in summary if "higher_is_better" in row), "")
    if metric.column in (*columns, "objective"):
        return metric
    if higher not in ("True", "False") or name in _MEASURED or not name.isidentifier():
        raise ValueError(f"its column after the state is {name!r}, not a metric")
    found = measure_of(metric.column)
    return Metric(name, Measure(found.column, found.name, higher == "True", found.form))


def _trial(row: Mapping[str, str], metric: Metric, searched: Sequence[str]) -> TrialRow:
    state = next((one for one in get_args(State) if one == row["state"]), None)
    if state is None:
        raise ValueError(f"the state is {row['state']!r}, not one of {', '.join(get_args(State))}")
    return TrialRow(
        int(_count(row, "trial") or 0),
        state,
        _value(row, metric.name),
        _value(row, "validation_accuracy") if metric.name != "validation_accuracy" else None,
        _count(row, "rounds"),
        _count(row, "gradients"),
        _count(row, "seconds"),
        {key: row[key] for key in searched if row[key]},
    )


def _value(row: Mapping[str, str], name: str) -> float | None:
    """Return a number of a row, ``None`` if the cell is empty or the column is missing."""
    text = row.get(name, "")
    value = as_number(text) if text else None
    if text and value is None:
        raise ValueError(f"{name} is {text!r}, not a number")
    return None if value is None or math.isnan(value) else value


def _count(row: Mapping[str, str], name: str) -> float | None:
    """Return a number of a row that is finite and not negative."""
    value = _value(row, name)
    if value is not None and not 0 <= value < math.inf:
        raise ValueError(f"{name} is {value:g}: it must be finite and not negative")
    return value
