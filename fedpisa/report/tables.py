"""The report's tables: numbers for CSV, and the same as text for the page and for LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from fedpisa.report.clients import Fairness
from fedpisa.report.columns import (
    ACCURACY,
    BY_VALIDATION,
    CHOSEN_BY,
    COST,
    FAIRNESS,
    OF_BEST,
    POINT,
    RUNS,
    SELECTED,
    SIGNIFICANCE,
    TUNING,
    TUNING_OF,
    GroupRow,
    PairRow,
    numbers_of,
)
from fedpisa.report.findings import Findings
from fedpisa.report.formatting import NOTHING, number, spread
from fedpisa.report.runs import Collection, total_bytes
from fedpisa.report.statistics import POWER
from fedpisa.report.table import Table, table_of
from fedpisa.report.tunings import Tuning


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
            tidy.append(
                {"variant": collection.variants[variant], "split": label, **numbers_of("final", value)}
            )
        if found.means:
            cells.append(number(found.means.get(variant), found.by_split[0].measure))
        rows.append([collection.variants[variant], *cells])
    # The majority class is an accuracy, and no value of another measure.
    majority = [
        collection.majority_share(one.split) if one.measure.column == "test_accuracy" else None
        for one in found.by_split
    ]
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
        + " A split is the data set and how the clients share it, named by the keys that differ."
        * (len(collection.splits) > 1)
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
        [column for column in ACCURACY if validated or column not in SELECTED],
        rows,
    )


def significance(found: Findings) -> Table:
    """Return all comparisons; those pooled over the splits come last."""
    variants = found.collection.variants
    families = [(found.collection.splits[one.split], one.measure, one.comparisons) for one in found.by_split]
    if found.pooled:
        families.append(("all splits", found.by_split[0].measure, found.pooled))
    rows = [
        PairRow(split, variants[first], variants[second], measure, comparison)
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
        SIGNIFICANCE,
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
        COST,
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
        f"Final model over the clients: {_measure_name(found).replace('test ', '')}",
        "All clients have the same weight. The worst 10% are at least one client; deviation and variance are over a "
        "seed's clients (n − 1); ± is over seeds.",
        FAIRNESS,
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
            "selected": run.result.selected(measures[group.split].column),
            "best": run.result.best(measures[group.split].column),
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
    columns = [column for column in RUNS if validated or column.title != BY_VALIDATION]
    return table_of("runs", "Every run", "", columns, rows)


def tuning(tunings: Sequence[Tuning], collection: Collection) -> Table:
    """Return what tuning cost and what it found, a row for each variant and point of the sweep."""
    rows = [one for tuning in tunings for one in tuning.tuned]
    empty = {
        POINT: not any(row.point for row in rows),
        OF_BEST: not any(row.best and row.best.accuracy is not None for row in rows),
        TUNING_OF: len(tunings) == 1,
        CHOSEN_BY: len({tuning.metric.name for tuning in tunings}) == 1,
    }
    spent = [row.total("rounds") for row in rows]
    trained = sum(run.last_round for run in collection.runs)
    cost = "" if None in spent else f"All trials together have {sum(filter(None, spent)):,.0f} rounds, "
    cost += f"the runs of this report {trained:,}. " if cost else ""
    return table_of(
        "tuning",
        "What tuning cost, and what it found",
        " ".join(dict.fromkeys(map(_how_chosen, tunings)))
        + " The median is over the finished trials: it is what values at random reach. "
        + cost
        + "Gradients are of single samples: a mini-batch of 32 counts 32.",
        [replace(column, text=None) if empty.get(column.title) else column for column in TUNING],
        rows,
        texts=1 if empty[POINT] else 2,
    )


def _how_chosen(tuning: Tuning) -> str:
    metric = tuning.metric
    source = (
        "validation samples, which are training samples that the clients do not see"
        if metric.uses_validation
        else "the test set"
        if metric.uses_test_set
        else "the training samples"
    )
    seeds = f", mean over the seeds {tuning.seeds}" if tuning.seeds else ""
    name = metric.name.replace("_", " ")
    return f"The values in {tuning.directory.name} are those of the best {name} on {source}{seeds}."


# ----------------------------------------------------------------------------------------------------- details


def _group_rows(found: Findings, references: bool = False) -> list[GroupRow]:
    runs = found.collection
    return [
        GroupRow(runs.splits[one.split], runs.variants[result.group.variant], one, result)
        for one in found.by_split
        for result in (*one.outcomes, *(one.references if references else ()))
    ]


def _measure_name(found: Findings) -> str:
    names = (one.measure.name + " (%)" * one.measure.percent for one in found.by_split)
    return " or ".join(dict.fromkeys(names))
