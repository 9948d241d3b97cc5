"""The report's tables: numbers for CSV, and the same as text for the page and for LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from fedpisa.report.clients import Fairness, worst
from fedpisa.report.findings import Findings, Measure, SplitFindings, VariantResult
from fedpisa.report.formatting import NOTHING, difference, fixed, interval, number, p_value, spread, verdict
from fedpisa.report.runs import total_bytes
from fedpisa.report.statistics import POWER, Comparison, Estimate, estimate, scaled
from fedpisa.report.table import Column, Row, Table, table_of


def overview(found: Findings) -> Table:
    """Return the final values: a row per variant, a column per split."""
    collection = found.collection
    places = {
        (outcome.group.variant, one.split): (one.measure, outcome)
        for one in found.by_split
        for outcome in (*one.outcomes, *one.references)
    }
    order = list(found.means) + [v for v in range(len(collection.variants)) if v not in found.means]
    if not found.means:
        order = list(dict.fromkeys(o.group.variant for one in found.by_split for o in one.outcomes))
        order += sorted(collection.references)
    most = max((o.final.n for one in found.by_split for o in one.ranked if o.final), default=0)
    rows, strong, tidy = [], set(), []
    best = {one.split: one.ranked[0].group.variant for one in found.by_split if one.ranked}
    for i, variant in enumerate(order):
        cells = []
        for split, label in enumerate(collection.splits):
            place = places.get((variant, split))
            if place is None:
                cells.append(NOTHING)
                continue
            measure, outcome = place
            few = f" (n = {value.n})" if (value := outcome.final) and value.n != most else ""
            cells.append(spread(value, measure) + few if value else outcome.group.note or NOTHING)
            if best.get(split) == variant:
                strong.add((i, 1 + split))
            tidy.append({"variant": collection.variants[variant], "split": label, **_numbers("final", value)})
        if found.means:
            cells.append(number(found.means.get(variant), found.by_split[0].measure))
        rows.append([collection.variants[variant], *cells])
    majority = [collection.majority_share(one.split) for one in found.by_split]
    if any(majority):
        mean = [NOTHING] if found.means else []
        shares = [number(s, one.measure) for s, one in zip(majority, found.by_split, strict=True)]
        rows.append(["majority class", *shares, *mean])
        tidy += [
            {"variant": "majority class", "split": label, "final_mean": share}
            for label, share in zip(collection.splits, majority, strict=True)
            if share is not None
        ]
    head = ["algorithm", *collection.splits, *(["mean of the splits"] if found.means else [])]
    return Table(
        "overview",
        f"Final {_measure_name(found)}, mean ± standard deviation over {most} seed{'s' * (most != 1)}",
        "The best of each split is bold. The comparisons below show whether its lead is significant."
        + " References give scale: they have no rank and are in no comparison." * bool(collection.references),
        pd.DataFrame(tidy),
        head,
        rows,
        texts=1,
        strong=frozenset(strong),
    )


def accuracy(found: Findings) -> Table:
    """Return final and best values of every group, with their intervals."""
    rows = _group_rows(found, references=True)
    validated = any(row.result.selected for row in rows)
    chosen = (
        " Best by validation is the value in the round with the lowest validation loss." if validated else ""
    )
    return table_of(
        "accuracy",
        f"Final and best {_measure_name(found)}",
        "Mean ± sample standard deviation (n − 1) over the finished seeds; Student's t interval of the mean, for "
        f"accuracies on the logit scale, so that it stays within 0 and 100%.{chosen} Best by test chooses the round on "
        f"the test set and is therefore optimistic for every algorithm; compare the "
        f"{'other' if validated else 'final'} values.",
        [column for column in _ACCURACY if validated or column not in _SELECTED],
        rows,
    )


def significance(found: Findings) -> Table:
    """Return all comparisons; those pooled over the splits come last."""
    variants = found.collection.variants
    families = [(found.collection.splits[one.split], one.measure, one.comparisons) for one in found.by_split]
    if found.pooled:
        families.append(("all splits", found.by_split[0].measure, found.pooled))
    rows = [
        _PairRow(split, variants[first], variants[second], measure, comparison)
        for split, measure, comparisons in families
        for (first, second), comparison in comparisons.items()
    ]
    unit = " in percentage points" if all(one.measure.percent for one in found.by_split) else ""
    return table_of(
        "significance",
        f"Paired comparisons of the final {_measure_name(found)}{unit}",
        "Pairs are runs of the same seed: the same data, split and initial model. Two-sided tests; Holm's "
        "correction over all pairs of a split; the verdict is that of the corrected t-test at 5%. For equal "
        "differences both tests are the signed-rank test. The interval is not corrected. Over all splits a seed's "
        "value is its mean over the splits, because its results on several splits are not independent; the result "
        "holds for these splits. The last column is the number of seeds with which an uncorrected t-test at 5% would "
        f"find a difference of one point with power {POWER:g}, if seeds vary as these.",
        _SIGNIFICANCE,
        rows,
        texts=3,
    )


def cost(found: Findings) -> Table:
    """Return the cost to the target and the cost of the whole run, for every group."""
    return table_of(
        "cost",
        "Cost to the target, and of the whole run",
        "Mean ± standard deviation over the seeds that reached the target, up to the first evaluated round that "
        "did. If some seeds did not, the mean covers the faster ones only. MB (10⁶ bytes) are summed over both "
        "directions and all clients, local steps over all clients; seconds are training time.",
        _COST,
        _group_rows(found),
    )


def fairness(found: Findings, groups: Iterable[Fairness]) -> Table:
    """Return how evenly the final model serves the clients."""
    by_group = {id(one.group): one for one in groups}
    rows = [
        row._replace(fairness=by_group.get(id(row.result.group)))
        for row in _group_rows(found)
        if row.result.final is not None
    ]
    return table_of(
        "clients",
        "Accuracy of the final model over the clients, in per cent",
        "All clients have the same weight. The worst 10% are at least one client; deviation and variance are over a "
        "seed's clients (n − 1); ± is over seeds.",
        _FAIRNESS,
        rows,
    )


def runs(found: Findings) -> Table:
    """Return all runs, including those that the other tables leave out."""
    collection = found.collection
    measures = {one.split: one.measure for one in found.by_split}
    rows: list[Mapping[str, Any]] = [
        {
            "measure": measures[group.split],
            "split": collection.splits[group.split],
            "algorithm": collection.variants[group.variant],
            "seed": run.seed,
            "status": run.status + ", repeats a seed: not counted" * (run in group.repeats),
            "rounds": run.last_round,
            "final": run.result.last(measures[group.split].column),
            "selected": measures[group.split].selected_of(run),
            "best": measures[group.split].best_of(run),
            "bytes": total_bytes(run.result),
            "seconds": run.result.total("seconds"),
            "directory": run.directory,
        }
        for group in collection.groups
        for run in group.runs
    ]
    rows += [
        {"status": f"unreadable: {reason}", "directory": directory}
        for directory, reason in collection.unreadable.items()
    ]
    validated = any(row.get("selected") is not None for row in rows)
    columns = [column for column in _RUNS if validated or column.title != _BY_VALIDATION]
    return table_of("runs", "Every run", "", columns, rows)


# ----------------------------------------------------------------------------------------------------- columns


class _GroupRow(NamedTuple):
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
    def accuracies(self) -> list[NDArray[np.float64]]:
        """Accuracies ``(N,)`` over the clients, seed by seed."""
        return list(self.fairness.by_seed.values()) if self.fairness else []


class _PairRow(NamedTuple):
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
    return Column(title, lambda row: form(value(row)), lambda row: _numbers(name, value(row)))


def _with_interval(
    title: str,
    name: str,
    value: Callable[[Any], Estimate | None],
    form: Callable[[Estimate | None, Measure], str],
    interval_title: str = "95% interval",
) -> tuple[Column[Any], Column[Any]]:
    """Return a column with a mean in the form of the row's measure, and a column with its interval."""
    return (
        Column(title, lambda row: form(value(row), row.measure), lambda row: _numbers(name, value(row))),
        Column(interval_title, lambda row: interval(value(row), row.measure)),
    )


def _entry(name: str, title: str = "", form: Callable[[Any], str] = str) -> Column[Mapping[str, Any]]:
    """Return a column with an entry of the row, which may lack it."""
    return Column(
        title or name,
        lambda row: form(row[name]) if name in row else NOTHING,
        lambda row: {name: row[name]} if name in row else {},
    )


def _to_target(title: str, name: str) -> Column[_GroupRow]:
    """Return a column with an attribute of the cost to the target."""
    return _mean(title, name, lambda row: getattr(row.result.cost, name, None))


def _over_clients(
    title: str,
    name: str,
    measure: Callable[[NDArray[np.float64]], float],
    least_clients: int = 1,
    factor: float = 100,
    digits: int = 2,
    share: bool = False,
) -> Column[_GroupRow]:
    """Return a column with a measure of the accuracies over a seed's clients."""

    def value(row: _GroupRow) -> Estimate | None:
        values = [float(measure(v)) for v in row.accuracies if len(v) >= least_clients]
        return estimate(values, share=share)

    return _mean(title, name, value, lambda found: fixed(scaled(found, factor), digits))


_NAMES: tuple[Column[_GroupRow], ...] = (
    _value("split", "split", lambda row: row.split),
    _value("algorithm", "algorithm", lambda row: row.algorithm),
)

_BY_VALIDATION: Final = "best by validation"
_BY_TEST: Final = "best by test (optimistic)"
_SELECTED: tuple[Column[_GroupRow], ...] = _with_interval(
    _BY_VALIDATION, "selected", lambda row: row.result.selected, spread
)

_ACCURACY: tuple[Column[_GroupRow], ...] = (
    *_NAMES,
    Column(data=lambda row: {"measure": row.measure.column}),
    Column("seeds", lambda row: str(row.result.final.n if row.result.final else 0) + row.note),
    *_with_interval("final", "final", lambda row: row.result.final, spread),
    *_SELECTED,
    *_with_interval(_BY_TEST, "best", lambda row: row.result.best, spread, "95% interval of the best"),
    Column(data=lambda row: {"not_finished": row.result.group.note}),
)

_SIGNIFICANCE: tuple[Column[_PairRow], ...] = (
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

_COST: tuple[Column[_GroupRow], ...] = (
    *_NAMES,
    Column(
        "target",
        lambda row: f"{100 * row.of_split.target.accuracy:g}%" if row.of_split.target else NOTHING,
        lambda row: {"target": row.of_split.target.accuracy if row.of_split.target else None},
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

_FAIRNESS: tuple[Column[_GroupRow], ...] = (
    *_NAMES,
    Column(data=lambda row: {"samples": row.fairness.source if row.fairness else ""}),
    Column("seeds", lambda row: str(len(row.accuracies))),
    _over_clients("mean", "mean", np.mean, share=True),
    _over_clients("worst 10%", "worst_tenth", worst, share=True),
    _over_clients("deviation", "deviation", lambda v: v.std(ddof=1), least_clients=2),
    _over_clients("variance (points²)", "variance", lambda v: v.var(ddof=1), 2, factor=1e4, digits=1),
    Column(
        data=lambda row: {
            "missing": (row.fairness.note if row.fairness else "") or "missing" * (not row.accuracies)
        }
    ),
)

_RUNS: tuple[Column[Mapping[str, Any]], ...] = (
    *(_entry(name) for name in ("split", "algorithm", "seed", "status", "rounds")),
    Column("final", lambda row: number(row.get("final"), row.get("measure")), _entry("final").data),
    Column(
        _BY_VALIDATION,
        lambda row: number(row.get("selected"), row.get("measure")),
        _entry("selected").data,
    ),
    Column(_BY_TEST, lambda row: number(row.get("best"), row.get("measure")), _entry("best").data),
    _entry("bytes", "MB", lambda size: number(size / 1e6)),
    _entry("seconds", form=number),
    _entry("directory"),
)


# ----------------------------------------------------------------------------------------------------- details


def _group_rows(found: Findings, references: bool = False) -> list[_GroupRow]:
    runs = found.collection
    return [
        _GroupRow(runs.splits[one.split], runs.variants[result.group.variant], one, result)
        for one in found.by_split
        for result in (*one.outcomes, *(one.references if references else ()))
    ]


def _numbers(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {f"{name}_{part}": None for part in ("n", "mean", "sd", "low", "high")}
    return {
        f"{name}_n": value.n,
        f"{name}_mean": value.mean,
        f"{name}_sd": value.sd,
        f"{name}_low": value.low,
        f"{name}_high": value.high,
    }


def _measure_name(found: Findings) -> str:
    names = (one.measure.name + " (%)" * one.measure.percent for one in found.by_split)
    return " or ".join(dict.fromkeys(names))
