"""The numbers of a report: of each group, and of each two variants on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, TypeVar, final

from fedpisa.report.statistics import Comparison, Estimate, compare, corrected, estimate

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection, Group, Run

_Key = TypeVar("_Key")

DEFAULT_TARGET = 0.95
"""Of the best final accuracy, rounded down to a percent: the target where neither the user nor the runs have one."""


@final
@dataclass(frozen=True)
class Measure:
    """What the algorithms are ranked by."""

    column: str
    name: str
    higher_is_better: bool

    @property
    def percent(self) -> bool:
        """Whether values are fractions that are shown as per cent."""
        return self.column.endswith("accuracy")

    def best_of(self, run: Run) -> float | None:
        """Return a run's best value over its rounds."""
        values = finite_values(run, self.column)
        return (max if self.higher_is_better else min)(values) if values else None

    def rank(self, mean: float) -> float:
        """Return a number that is least for the best."""
        return -mean if self.higher_is_better else mean


ACCURACY = Measure("test_accuracy", "test accuracy", higher_is_better=True)
LOSS = Measure("test_loss", "test loss", higher_is_better=False)


@final
@dataclass(frozen=True)
class Target:
    """The accuracy to reach, and a note on its origin."""

    accuracy: float
    source: str


@final
@dataclass(frozen=True, eq=False)
class Cost:
    """Cost of reaching the target, over the runs of a group.

    Parameters
    ----------
    reached, of
        Number of runs that reached the target, and of finished runs.
    rounds, megabytes, local_steps, seconds
        Estimates over the runs that reached it; ``None`` if none did. Bytes count both directions.
    """

    reached: int
    of: int
    rounds: Estimate | None
    megabytes: Estimate | None
    local_steps: Estimate | None
    seconds: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class VariantResult:
    """Results of one variant on one split; estimates are ``None`` if none of its runs finished."""

    group: Group
    final: Estimate | None
    best: Estimate | None
    final_by_seed: Mapping[int, float]
    cost: Cost | None
    megabytes: Estimate | None
    seconds: Estimate | None


@final
@dataclass(frozen=True, eq=False)
class SplitFindings:
    """Results on one split.

    Parameters
    ----------
    split
        Number of the split.
    measure
        The measure that ranks the variants.
    target
        The accuracy up to which costs are counted, if any.
    outcomes
        Results by variant: the best first, variants without a finished run last.
    comparisons
        Of each two variants, the one that ranks first less the other, corrected over all pairs of the split.
    """

    split: int
    measure: Measure
    target: Target | None
    outcomes: Sequence[VariantResult]
    comparisons: Mapping[tuple[int, int], Comparison]

    @property
    def ranked(self) -> list[VariantResult]:
        """The outcomes that can be ranked."""
        return [outcome for outcome in self.outcomes if outcome.final is not None]


@final
@dataclass(frozen=True, eq=False)
class Findings:
    """Results on all splits.

    Parameters
    ----------
    collection
        In what runs.
    by_split
        Split by split.
    means
        Of the variants that finished on all splits, the mean over the splits of their mean final value, the best
        first; empty where there is one split only, or different measures.
    pooled
        Their comparisons with pairs (seed, split).
    """

    collection: Collection
    by_split: Sequence[SplitFindings]
    means: Mapping[int, float] = field(default_factory=dict)
    pooled: Mapping[tuple[int, int], Comparison] = field(default_factory=dict)


def finite_values(run: Run, column: str) -> list[float]:
    """Return a column's values, where it was measured and finite."""
    values = (row.get(column) for row in run.result.rows)
    return [float(value) for value in values if value is not None and math.isfinite(value)]


def find(collection: Collection, target_accuracy: float | None = None) -> Findings:
    """Evaluate a collection.

    Parameters
    ----------
    collection
        The runs.
    target_accuracy
        In [0, 1]; by default what the runs have in common as ``target-accuracy``, or else `DEFAULT_TARGET` of the
        best, split by split.
    """
    by_split = [
        _find_split(split, collection.of_split(split), target_accuracy)
        for split in range(len(collection.splits))
    ]
    if len(by_split) < 2 or len({found.measure for found in by_split}) > 1:
        return Findings(collection, by_split)
    values = {
        variant: {
            (seed, found.split): value
            for found in by_split
            for outcome in found.ranked
            if outcome.group.variant == variant
            for seed, value in outcome.final_by_seed.items()
        }
        for variant in range(len(collection.variants))
    }
    means = {}
    for variant in values:
        finals = [o.final.mean for f in by_split for o in f.ranked if o.final and o.group.variant == variant]
        if len(finals) == len(by_split):
            means[variant] = math.fsum(finals) / len(finals)
    order = sorted(means, key=lambda variant: by_split[0].measure.rank(means[variant]))
    return Findings(
        collection,
        by_split,
        {variant: means[variant] for variant in order},
        _comparisons(order, {variant: values[variant] for variant in order}),
    )


def _find_split(split: int, groups: Sequence[Group], target_accuracy: float | None) -> SplitFindings:
    measure = ACCURACY if any(finite_values(run, ACCURACY.column) for g in groups for run in g.runs) else LOSS
    finals = {id(group): _by_seed(group, lambda run: run.result.last(measure.column)) for group in groups}
    target = _target(groups, measure, [estimate(list(f.values())) for f in finals.values()], target_accuracy)
    outcomes = []
    for group in groups:
        runs = list(group.finished.values())
        outcomes.append(
            VariantResult(
                group,
                final=estimate(list(finals[id(group)].values())),
                best=estimate(list(_by_seed(group, measure.best_of).values())),
                final_by_seed=finals[id(group)],
                cost=None if target is None else _cost(runs, measure.column, target.accuracy),
                megabytes=estimate([_bytes(run) / 1e6 for run in runs]),
                seconds=estimate([run.result.total("seconds") for run in runs]),
            )
        )
    outcomes.sort(key=lambda o: math.inf if o.final is None else measure.rank(o.final.mean))
    ranked = [outcome for outcome in outcomes if outcome.final is not None]
    comparisons = _comparisons(
        [outcome.group.variant for outcome in ranked],
        {outcome.group.variant: outcome.final_by_seed for outcome in ranked},
    )
    return SplitFindings(split, measure, target, outcomes, comparisons)


def _by_seed(group: Group, value: Callable[[Run], float | None]) -> dict[int, float]:
    pairs = ((seed, value(run)) for seed, run in group.finished.items())
    return {seed: found for seed, found in pairs if found is not None}


def _target(
    groups: Iterable[Group],
    measure: Measure,
    finals: Iterable[Estimate | None],
    asked: float | None,
) -> Target | None:
    if not measure.percent:
        return None
    if asked is not None:
        return Target(asked, "as asked for")
    own = {run.result.config.target_accuracy for group in groups for run in group.runs}
    if len(own) == 1 and (common := next(iter(own))) is not None:
        return Target(common, "the runs' target-accuracy")
    best = max((final.mean for final in finals if final), default=None)
    if best is None:
        return None
    why = "the runs name different targets" if len(own) > 1 else "no target is named"
    share = f"{DEFAULT_TARGET:.0%} of the best, as {why}"
    return Target(math.floor(100 * DEFAULT_TARGET * best + 1e-9) / 100, share)


def _cost(runs: Sequence[Run], column: str, target: float) -> Cost:
    spent = [found for run in runs if (found := _spent_until(run, column, target))]
    columns = [estimate(list(values)) for values in zip(*spent, strict=True)] or [None] * 4
    return Cost(len(spent), len(runs), *columns)


def _spent_until(run: Run, column: str, target: float) -> tuple[float, float, float, float] | None:
    reached = run.result.rounds_to(target, column)
    if reached is None:
        return None
    rows = [row for row in run.result.rows if (row["round"] or 0) <= reached]

    def total(name: str) -> float:
        return math.fsum(row.get(name) or 0.0 for row in rows)

    return reached, (total("bytes_up") + total("bytes_down")) / 1e6, total("local_steps"), total("seconds")


def _bytes(run: Run) -> float:
    return run.result.total("bytes_up") + run.result.total("bytes_down")


def _comparisons(
    order: Sequence[int], values: Mapping[int, Mapping[_Key, float]]
) -> dict[tuple[int, int], Comparison]:
    """Compare each two variants on the keys that both have, the one that ranks first less the other."""
    pairs = list(combinations(order, 2))
    found = []
    for first, second in pairs:
        shared = [key for key in values[first] if key in values[second]]
        found.append(compare([values[first][key] for key in shared], [values[second][key] for key in shared]))
    return dict(zip(pairs, corrected(found), strict=True))
