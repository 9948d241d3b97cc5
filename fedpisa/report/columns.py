"""The columns of the report's tables, each as text and as numbers for CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedpisa.report.clients import Fairness, worst
from fedpisa.report.findings import SplitFindings, VariantResult
from fedpisa.report.formatting import NOTHING, difference, fixed, interval, number, p_value, spread, verdict
from fedpisa.report.statistics import Comparison, Estimate, estimate, scaled
from fedpisa.report.table import Column, Row
from fedpisa.report.tunings import Tuned
from fedpisa.tasks.measures import Measure


class GroupRow(NamedTuple):
    """One variant on one split."""

    split: str
    algorithm: str
    of_split: SplitFindings
    result: VariantResult
    fairness: Fairness | None = None

    @property
    def measure(self) -> Measure:
        """The measure of the split."""
        return self.of_split.measure

    @property
    def note(self) -> str:
        """The note on runs that did not finish, such as `` (1 diverged)``."""
        return f" ({self.result.group.note})" * bool(self.result.group.note)

    @property
    def by_client(self) -> list[NDArray[np.float64]]:
        """Values ``(N,)`` over the clients, seed by seed."""
        return list(self.fairness.by_seed.values()) if self.fairness else []


class PairRow(NamedTuple):
    """Two variants on the same seeds."""

    split: str
    first: str
    second: str
    measure: Measure
    comparison: Comparison


def _value(
    title: str, name: str, value: Callable[[Row], Any], form: Callable[[Any], str] = str
) -> Column[Row]:
    """Return a column with one value in the CSV file."""
    return Column(title, lambda row: form(value(row)), lambda row: {name: value(row)})


def _mean(
    title: str,
    name: str,
    value: Callable[[Row], Estimate | None],
    form: Callable[[Estimate | None], str] = spread,
) -> Column[Row]:
    """Return a column with a mean over seeds, its deviation and its interval in the CSV file."""
    return Column(title, lambda row: form(value(row)), lambda row: numbers_of(name, value(row)))


def _with_interval(
    title: str,
    name: str,
    value: Callable[[Any], Estimate | None],
    form: Callable[[Estimate | None, Measure], str],
    interval_title: str = "95% interval",
) -> tuple[Column[Any], Column[Any]]:
    """Return a column with a mean in the form of the row's measure, and a column with its interval."""
    return (
        Column(title, lambda row: form(value(row), row.measure), lambda row: numbers_of(name, value(row))),
        Column(interval_title, lambda row: interval(value(row), row.measure)),
    )


def _entry(name: str, title: str = "", form: Callable[[Any], str] = str) -> Column[Mapping[str, Any]]:
    """Return a column with an entry of the row, which may lack it."""
    return Column(
        title or name,
        lambda row: form(row[name]) if name in row else NOTHING,
        lambda row: {name: row[name]} if name in row else {},
    )


def _to_target(title: str, name: str) -> Column[GroupRow]:
    """Return a column with an attribute of the cost to the target."""
    return _mean(title, name, lambda row: getattr(row.result.cost, name, None))


def _over_clients(
    title: str,
    name: str,
    statistic: Callable[[NDArray[np.float64], Measure], float],
    least_clients: int = 1,
    power: int = 1,
    share: bool = False,
) -> Column[GroupRow]:
    """Return a column with a statistic of the values over a seed's clients, of a share in per cent to a power."""

    def value(row: GroupRow) -> Estimate | None:
        values = [float(statistic(v, row.measure)) for v in row.by_client if len(v) >= least_clients]
        return estimate(values, share=share and row.measure.percent)

    def form(row: GroupRow) -> str:
        found = value(row)
        return fixed(scaled(found, 100**power), 3 - power) if row.measure.percent else spread(found)

    return Column(title, form, lambda row: numbers_of(name, value(row)))


_NAMES: tuple[Column[GroupRow], ...] = (
    _value("split", "split", lambda row: row.split),
    _value("algorithm", "algorithm", lambda row: row.algorithm),
)

BY_VALIDATION: Final = "best by validation"
_BY_TEST: Final = "best by test (optimistic)"
SELECTED: tuple[Column[GroupRow], ...] = _with_interval(
    BY_VALIDATION, "selected", lambda row: row.result.selected, spread
)

ACCURACY: tuple[Column[GroupRow], ...] = (
    *_NAMES,
    Column(data=lambda row: {"measure": row.measure.column}),
    Column("seeds", lambda row: str(row.result.final.n if row.result.final else 0) + row.note),
    *_with_interval("final", "final", lambda row: row.result.final, spread),
    *SELECTED,
    *_with_interval(_BY_TEST, "best", lambda row: row.result.best, spread, "95% interval of the best"),
    Column(data=lambda row: {"not_finished": row.result.group.note}),
)

SIGNIFICANCE: tuple[Column[PairRow], ...] = (
    _value("split", "split", lambda row: row.split),
    _value("A", "first", lambda row: row.first),
    _value("B", "second", lambda row: row.second),
    Column("seeds", lambda row: str(row.comparison.difference.n if row.comparison.difference else 0)),
    *_with_interval("A − B", "difference", lambda row: row.comparison.difference, difference),
    _value("t-test p", "t_p", lambda row: row.comparison.t_p, p_value),
    _value("corrected", "t_p_holm", lambda row: row.comparison.t_holm, p_value),
    _value("Wilcoxon p", "wilcoxon_p", lambda row: row.comparison.wilcoxon_p, p_value),
    _value("corrected", "wilcoxon_p_holm", lambda row: row.comparison.wilcoxon_holm, p_value),
    _value("verdict", "verdict", lambda row: verdict(row.comparison)),
    _value(
        "seeds for 1 point",
        "seeds_for_a_point",
        lambda row: row.comparison.seeds_for_a_point if row.measure.percent else None,
        number,
    ),
)

COST: tuple[Column[GroupRow], ...] = (
    *_NAMES,
    Column(
        "target",
        lambda row: row.of_split.target.text if row.of_split.target else NOTHING,
        lambda row: {"target": row.of_split.target.value if row.of_split.target else None},
    ),
    Column(
        "seeds reached it",
        lambda row: f"{c.reached} of {c.of}{row.note}" if (c := row.result.cost) else NOTHING,
        lambda row: {name: getattr(row.result.cost, name, None) for name in ("reached", "of")},
    ),
    _to_target("rounds", "rounds"),
    _to_target("MB", "megabytes"),
    _to_target("local steps", "local_steps"),
    _to_target("seconds", "seconds"),
    _mean("MB, whole run", "total_megabytes", lambda row: row.result.megabytes),
    _mean("seconds, whole run", "total_seconds", lambda row: row.result.seconds),
)

FAIRNESS: tuple[Column[GroupRow], ...] = (
    *_NAMES,
    Column(data=lambda row: {"samples": row.fairness.source if row.fairness else ""}),
    Column("seeds", lambda row: str(len(row.by_client))),
    _over_clients("mean", "mean", lambda values, _: values.mean(), share=True),
    _over_clients("worst 10%", "worst_tenth", worst, share=True),
    _over_clients("deviation", "deviation", lambda values, _: values.std(ddof=1), least_clients=2),
    _over_clients("variance (points²)", "variance", lambda values, _: values.var(ddof=1), 2, power=2),
    Column(
        data=lambda row: {
            "missing": (row.fairness.note if row.fairness else "") or "missing" * (not row.by_client)
        }
    ),
)

RUNS: tuple[Column[Mapping[str, Any]], ...] = (
    *(_entry(name) for name in ("split", "algorithm", "seed", "status", "rounds")),
    Column("final", lambda row: number(row.get("final"), row.get("measure")), _entry("final").data),
    Column(
        BY_VALIDATION,
        lambda row: number(row.get("selected"), row.get("measure")),
        _entry("selected").data,
    ),
    Column(_BY_TEST, lambda row: number(row.get("best"), row.get("measure")), _entry("best").data),
    _entry("bytes", "MB", lambda size: number(size / 1e6)),
    _entry("seconds", form=number),
    _entry("directory"),
)


POINT: Final = "at"
OF_BEST: Final = "accuracy of the best"
TUNING_OF: Final = "tuning"
CHOSEN_BY: Final = "chosen by"


def _states(row: Tuned) -> dict[str, int]:
    states = [trial.state for trial in row.trials]
    return {state: states.count(state) for state in ("finished", "pruned", "diverged", "failed")}


def _trials(row: Tuned) -> str:
    ended = ", ".join(f"{n} {state}" for state, n in _states(row).items() if n and state != "finished")
    return f"{len(row.trials)} ({ended})" if ended else str(len(row.trials))


def _sum(name: str) -> Column[Tuned]:
    """Return a column with a sum over the trials."""
    return Column(
        name,
        lambda row: NOTHING if (total := row.total(name)) is None else f"{total:,.0f}",
        lambda row: {name: row.total(name)},
    )


def _best_values(row: Tuned) -> dict[str, str]:
    return {f"best_{key}": value for key, value in row.best.keys.items()} if row.best else {}


def _tuned(value: float | None, percent: bool) -> str:
    if value is None:
        return NOTHING
    return f"{100 * value:.2f}%" if percent else f"{value:.4g}"


TUNING: tuple[Column[Tuned], ...] = (
    Column("algorithm", lambda row: row.variant, lambda row: {"variant": row.variant}),
    Column(POINT, lambda row: row.point_text or NOTHING, lambda row: row.point),
    Column("trials", _trials, lambda row: {"trials": len(row.trials), **_states(row)}),
    *map(_sum, ("rounds", "gradients", "seconds")),
    Column(CHOSEN_BY, lambda row: row.metric.name.replace("_", " "), lambda row: {"metric": row.metric.name}),
    Column(
        "best",
        lambda row: _tuned(row.best.metric if row.best else None, row.metric.percent),
        lambda row: {"best": row.best.metric if row.best else None},
    ),
    Column("median", lambda row: _tuned(row.median, row.metric.percent), lambda row: {"median": row.median}),
    Column(
        OF_BEST,
        lambda row: _tuned(row.best.accuracy if row.best else None, percent=True),
        lambda row: {"validation_accuracy_of_best": row.best.accuracy if row.best else None},
    ),
    Column(
        "at an edge",
        lambda row: NOTHING if row.at_edge is None else row.at_edge or "no",
        lambda row: {"at_edge": row.at_edge},
    ),
    Column("extensions", lambda row: row.extensions or NOTHING, lambda row: {"extensions": row.extensions}),
    Column("best values", lambda row: row.values or NOTHING, _best_values),
    Column(TUNING_OF, lambda row: row.directory.name, lambda row: {"directory": row.directory}),
)


def numbers_of(name: str, value: Estimate | None) -> dict[str, float | None]:
    """Return a mean over seeds, its deviation and its interval by their names in a CSV file."""
    if value is None:
        return {f"{name}_{part}": None for part in ("n", "mean", "sd", "low", "high")}
    return {
        f"{name}_n": value.n,
        f"{name}_mean": value.mean,
        f"{name}_sd": value.sd,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
    }
