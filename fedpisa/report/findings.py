"""The numbers of a report: estimates for each group, and comparisons of variants on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, final

from fedpisa.components import total
from fedpisa.report.runs import total_bytes
from fedpisa.report.statistics import Comparison, Estimate, compare, corrected, estimate, seed_means
from fedpisa.runs.results import common_headline
from fedpisa.tasks.measures import Measure

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection, Group, Run

DEFAULT_TARGET = 0.95
"""Default target, as a fraction of the best final value, rounded down to a hundredth."""


@final
@dataclass(frozen=True)
class Target:
    """The value of a measure to reach, and a note on its origin."""

    value: float
    source: str
    measure: Measure

    @property
    def text(self) -> str:
        """The value for a reader."""
        return f"{100 * self.value:g}%" if self.measure.percent else f"{self.value:g}"


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
    """Results of one variant on one split; estimates are ``None`` if none of its runs finished.

    ``final`` is of the last round, ``selected`` of the round with the lowest validation loss, and ``best`` of the round
    that is best on the test set itself.
    """

    group: Group
    final: Estimate | None
    best: Estimate | None
    final_by_seed: Mapping[int, float]
    cost: Cost | None
    megabytes: Estimate | None
    seconds: Estimate | None
    selected: Estimate | None = None


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
        The value up to which costs are counted, if any.
    outcomes
        Results by variant: the best first, variants without a finished run last.
    comparisons
        Comparison of each two variants, the higher-ranked minus the other, corrected over all pairs of the split.
    references
        Results of the references, which are not among the outcomes.
    """

    split: int
    measure: Measure
    target: Target | None
    outcomes: Sequence[VariantResult]
    comparisons: Mapping[tuple[int, int], Comparison]
    references: Sequence[VariantResult] = ()

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
        The runs.
    by_split
        Results on each split.
    means
        Mean final value over the splits, for the variants that finished on all splits, the best first. Empty if there
        is only one split, or if the splits have different measures.
    pooled
        Comparisons of these variants by their seeds' means over the splits, see
        `fedpisa.report.statistics.seed_means`.
    """

    collection: Collection
    by_split: Sequence[SplitFindings]
    means: Mapping[int, float] = field(default_factory=dict)
    pooled: Mapping[tuple[int, int], Comparison] = field(default_factory=dict)


def find(collection: Collection, target: float | None = None) -> Findings:
    """Evaluate a collection.

    Parameters
    ----------
    collection
        The runs.
    target
        Value of the splits' measure, a fraction for a share. By default the runs' common target; if they have none,
        `DEFAULT_TARGET` times the best value of each split, where more is better.

    Raises
    ------
    ValueError
        If the target of a share is not in (0, 1].
    """
    by_split = [
        _find_split(split, collection.of_split(split), target) for split in range(len(collection.splits))
    ]
    if len(by_split) < 2 or len({found.measure for found in by_split}) > 1:
        return Findings(collection, by_split)
    means, values = {}, {}
    for variant in range(len(collection.variants)):
        ranked = [o for found in by_split for o in found.ranked if o.group.variant == variant]
        if len(ranked) == len(by_split):
            means[variant] = total(o.final.mean for o in ranked if o.final) / len(ranked)
            values[variant] = seed_means([outcome.final_by_seed for outcome in ranked])
    order = sorted(means, key=lambda variant: by_split[0].measure.rank(means[variant]))
    return Findings(
        collection, by_split, {variant: means[variant] for variant in order}, _comparisons(order, values)
    )


def _find_split(split: int, groups: Sequence[Group], asked: float | None) -> SplitFindings:
    measure = common_headline(run.result for group in groups for run in group.runs)
    finals = {id(group): _by_seed(group, lambda run: run.result.last(measure.column)) for group in groups}
    federated = [group for group in groups if not group.is_reference]
    means = [estimate(list(finals[id(group)].values())) for group in federated]
    target = _target(federated, measure, means, asked)

    def over_seeds(group: Group, value: Callable[[Run], float | None]) -> Estimate | None:
        return estimate(list(_by_seed(group, value).values()), share=measure.percent)

    outcomes = []
    for group in groups:
        runs = list(group.finished.values())
        outcomes.append(
            VariantResult(
                group,
                final=estimate(list(finals[id(group)].values()), share=measure.percent),
                best=estimate(
                    list(_by_seed(group, lambda run: run.result.best(measure.column)).values()),
                    share=measure.percent,
                ),
                final_by_seed=finals[id(group)],
                cost=None if target is None else _cost(runs, target),
                megabytes=estimate([total_bytes(run.result) / 1e6 for run in runs]),
                seconds=estimate([run.result.total("seconds") for run in runs]),
                selected=estimate(
                    list(_by_seed(group, lambda run: run.result.selected(measure.column)).values()),
                    share=measure.percent,
                ),
            )
        )
    references = [outcome for outcome in outcomes if outcome.group.is_reference]
    outcomes = [outcome for outcome in outcomes if not outcome.group.is_reference]
    outcomes.sort(key=lambda o: math.inf if o.final is None else measure.rank(o.final.mean))
    ranked = [outcome for outcome in outcomes if outcome.final is not None]
    comparisons = _comparisons(
        [outcome.group.variant for outcome in ranked],
        {outcome.group.variant: outcome.final_by_seed for outcome in ranked},
    )
    return SplitFindings(split, measure, target, outcomes, comparisons, references)


def _by_seed(group: Group, value: Callable[[Run], float | None]) -> dict[int, float]:
    pairs = ((seed, value(run)) for seed, run in group.finished.items())
    return {seed: found for seed, found in pairs if found is not None}


def _target(
    groups: Iterable[Group],
    measure: Measure,
    finals: Iterable[Estimate | None],
    asked: float | None,
) -> Target | None:
    if asked is not None:
        if measure.percent and not 0 < asked <= 1:
            raise ValueError(
                f"a target of {asked:g} is not an accuracy: give a fraction in (0, 1], such as 0.9"
                if measure.column == "test_accuracy"
                else f"a target of {asked:g} is no {measure.name}: give a fraction in (0, 1], such as 0.9"
            )
        return Target(asked, "as asked for", measure)
    targets = {run.result.target for group in groups for run in group.runs}
    if len(targets) == 1 and (common := next(iter(targets))) is not None:
        column, value = common
        of_runs = next(run.result.measure(column) for group in groups for run in group.runs)
        return Target(value, "the runs' target", of_runs)
    best = max((final.mean for final in finals if final), default=None)
    if best is None or not measure.higher_is_better or best <= 0:
        return None
    why = "the runs have different targets" if len(targets) > 1 else "the runs have no target"
    share = f"{DEFAULT_TARGET:.0%} of the best, as {why}"
    return Target(math.floor(100 * DEFAULT_TARGET * best + 1e-9) / 100, share, measure)


def _cost(runs: Sequence[Run], target: Target) -> Cost:
    spent = [found for run in runs if (found := _spent_until(run, target))]
    columns = [estimate(list(values)) for values in zip(*spent, strict=True)] or [None] * 4
    return Cost(len(spent), len(runs), *columns)


def _spent_until(run: Run, target: Target) -> tuple[float, float, float, float] | None:
    reached = run.result.rounds_to(target.value, target.measure.column)
    if reached is None:
        return None
    part = replace(run.result, rows=[row for row in run.result.rows if (row["round"] or 0) <= reached])
    return reached, total_bytes(part) / 1e6, part.total("local_steps"), part.total("seconds")


def _comparisons(
    order: Sequence[int], values: Mapping[int, Mapping[int, float]]
) -> dict[tuple[int, int], Comparison]:
    """Compare each two variants on their common seeds, the higher-ranked minus the other."""
    pairs = list(combinations(order, 2))
    found = []
    for first, second in pairs:
        shared = [seed for seed in values[first] if seed in values[second]]
        found.append(
            compare([values[first][seed] for seed in shared], [values[second][seed] for seed in shared])
        )
    return dict(zip(pairs, corrected(found), strict=True))
