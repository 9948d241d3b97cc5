"""The report's tables: numbers for CSV, and the same as text for the page and for LaTeX."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from fedpisa.report.clients import Fairness, worst
from fedpisa.report.statistics import Estimate, estimate
from fedpisa.report.table import Table, frame_of
from fedpisa.report.text import NOTHING, difference, fixed, interval, number, p_value, spread, verdict

if TYPE_CHECKING:
    from fedpisa.report.findings import Findings, VariantResult

ALL_SPLITS = "all splits"


def overview(found: Findings) -> Table:
    """Return variants by splits, the table of a paper."""
    collection = found.collection
    places = {
        (outcome.group.variant, one.split): (one.measure, outcome)
        for one in found.by_split
        for outcome in one.outcomes
    }
    order = list(found.means) + [v for v in range(len(collection.variants)) if v not in found.means]
    if not found.means:
        order = list(dict.fromkeys(o.group.variant for one in found.by_split for o in one.outcomes))
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
            final = outcome.final
            few = f" (n = {final.n})" if final and final.n != most else ""
            cells.append(spread(final, measure) + few if final else outcome.group.note or NOTHING)
            if best.get(split) == variant:
                strong.add((i, 1 + split))
            tidy.append({"variant": collection.variants[variant], "split": label, **_numbers("final", final)})
        if found.means:
            mean = found.means.get(variant)
            cells.append(number(mean, found.by_split[0].measure))
        rows.append([collection.variants[variant], *cells])
    head = ["algorithm", *collection.splits, *(["mean of the splits"] if found.means else [])]
    return Table(
        "overview",
        f"Final {_measure_name(found)}, mean ± standard deviation over {most} seed{'s' * (most != 1)}",
        "The best of each split is bold. Whether it is so by more than chance is among the comparisons below.",
        frame_of(tidy),
        head,
        rows,
        texts=1,
        strong=frozenset(strong),
    )


def accuracy(found: Findings) -> Table:
    """Return final and best values of every group, with their intervals."""
    tidy, rows = [], []
    for one in found.by_split:
        for outcome in one.outcomes:
            names = _names(found, outcome)
            tidy.append(
                {
                    **names,
                    "measure": one.measure.column,
                    **_numbers("final", outcome.final),
                    **_numbers("best", outcome.best),
                    "not_finished": outcome.group.note,
                }
            )
            n = str(outcome.final.n if outcome.final else 0)
            rows.append(
                [
                    *names.values(),
                    f"{n} ({outcome.group.note})" if outcome.group.note else n,
                    spread(outcome.final, one.measure),
                    interval(outcome.final, one.measure),
                    spread(outcome.best, one.measure),
                    interval(outcome.best, one.measure),
                ]
            )
    head = ["split", "algorithm", "seeds", "final", "95% interval", "best round", "95% interval of the best"]
    return Table(
        "accuracy",
        f"Final and best {_measure_name(found)}",
        "Mean ± sample standard deviation (n − 1) over the finished seeds; Student's t interval of the mean, which may "
        "reach beyond 100% where a few seeds differ much. The best round is chosen on the test set, so it flatters "
        "every algorithm; compare the final values.",
        frame_of(tidy),
        head,
        rows,
    )


def significance(found: Findings) -> Table:
    """Return every comparison, those pooled over the splits last."""
    tidy, rows = [], []
    measures = {one.split: one.measure for one in found.by_split}
    families = [(found.collection.splits[o.split], measures[o.split], o.comparisons) for o in found.by_split]
    if found.pooled:
        families.append((ALL_SPLITS, found.by_split[0].measure, found.pooled))
    for label, measure, comparisons in families:
        for (first, second), one in comparisons.items():
            pair = {
                "split": label,
                "first": found.collection.variants[first],
                "second": found.collection.variants[second],
            }
            tidy.append(
                {
                    **pair,
                    **_numbers("difference", one.difference),
                    "t_p": one.t_p,
                    "t_p_holm": one.t_holm,
                    "wilcoxon_p": one.wilcoxon_p,
                    "wilcoxon_p_holm": one.wilcoxon_holm,
                    "verdict": verdict(one),
                }
            )
            rows.append(
                [
                    *pair.values(),
                    str(one.difference.n if one.difference else 0),
                    difference(one.difference, measure),
                    interval(one.difference, measure),
                    p_value(one.t_p),
                    p_value(one.t_holm),
                    p_value(one.wilcoxon_p),
                    p_value(one.wilcoxon_holm),
                    verdict(one),
                ]
            )
    head = [
        "split",
        "A",
        "B",
        "pairs",
        "A − B",
        "95% interval",
        "t-test p",
        "corrected",
        "Wilcoxon p",
        "corrected",
        "verdict",
    ]
    unit = " in percentage points" if all(m.percent for m in measures.values()) else ""
    return Table(
        "significance",
        f"Paired comparisons of the final {_measure_name(found)}{unit}",
        "Pairs are runs of the same seed: the same data, split and initial model. Two-sided tests; Holm's "
        "correction over all pairs of a split; the verdict is that of the corrected t-test at 5%. The "
        "interval is not corrected. Over all splits a pair is a seed on a split: that speaks of these splits alone.",
        frame_of(tidy),
        head,
        rows,
        texts=3,
    )


def cost(found: Findings) -> Table:
    """Return what the target cost, and the whole run."""
    tidy, rows = [], []
    for one in found.by_split:
        for outcome in one.outcomes:
            names, own = _names(found, outcome), outcome.cost
            more = f" ({outcome.group.note})" if outcome.group.note else ""
            columns = {
                "rounds": own and own.rounds,
                "megabytes": own and own.megabytes,
                "local_steps": own and own.local_steps,
                "seconds": own and own.seconds,
            }
            tidy.append(
                {
                    **names,
                    "target": one.target.accuracy if one.target else None,
                    "reached": own.reached if own else None,
                    "of": own.of if own else None,
                    **_merged(_numbers(name, value) for name, value in columns.items()),
                    **_numbers("total_megabytes", outcome.megabytes),
                    **_numbers("total_seconds", outcome.seconds),
                }
            )
            rows.append(
                [
                    *names.values(),
                    f"{100 * one.target.accuracy:g}%" if one.target else NOTHING,
                    f"{own.reached} of {own.of}{more}" if own else NOTHING,
                    *(spread(value) for value in columns.values()),
                    spread(outcome.megabytes),
                    spread(outcome.seconds),
                ]
            )
    head = ["split", "algorithm", "target", "seeds reached it", "rounds", "MB", "local steps"]
    return Table(
        "cost",
        "Cost to the target, and of the whole run",
        "Mean ± standard deviation over the seeds that reached it, up to the first evaluated round that did; "
        "where not all did, the mean is of the faster ones. MB (10⁶ bytes) count both ways and all "
        "clients, local steps all clients; seconds are training time.",
        frame_of(tidy),
        [*head, "seconds", "MB, whole run", "seconds, whole run"],
        rows,
    )


def fairness(found: Findings, groups: Iterable[Fairness]) -> Table:
    """Return how evenly the final model serves the clients."""
    by_group = {id(one.group): one for one in groups}
    tidy, rows = [], []
    for one in found.by_split:
        for outcome in one.ranked:
            fair = by_group.get(id(outcome.group))
            values = list(fair.by_seed.values()) if fair else []
            names = _names(found, outcome)
            own = {
                "mean": estimate([float(v.mean()) for v in values]),
                "worst_tenth": estimate([worst(v) for v in values]),
                "deviation": estimate([float(v.std(ddof=1)) for v in values if len(v) > 1]),
                "variance": estimate([float(v.var(ddof=1)) for v in values if len(v) > 1]),
            }
            missing = (fair.note if fair else "") or ("" if values else "missing")
            tidy.append(
                {
                    **names,
                    "samples": fair.source if fair else "",
                    **_merged(_numbers(name, value) for name, value in own.items()),
                    "missing": missing,
                }
            )
            percent = [_scaled(own[name], 100) for name in ("mean", "worst_tenth", "deviation")]
            rows.append(
                [
                    *names.values(),
                    str(len(values)),
                    *(fixed(value, 2) for value in percent),
                    fixed(_scaled(own["variance"], 1e4), 1),
                ]
            )
    head = ["split", "algorithm", "seeds", "mean", "worst 10%", "deviation", "variance (points²)"]
    return Table(
        "clients",
        "Accuracy of the final model over the clients, in per cent",
        "Every client counts alike. The worst 10% are at least one client; deviation and variance are over a "
        "seed's clients (n − 1); ± is over seeds.",
        frame_of(tidy),
        head,
        rows,
    )


def runs(found: Findings) -> Table:
    """Return every run, also those that no number above is of."""
    collection = found.collection
    measures = {one.split: one.measure for one in found.by_split}
    tidy, rows = [], []
    for group in collection.groups:
        for run in group.runs:
            measure = measures[group.split]
            rounds = max((int(row["round"] or 0) for row in run.result.rows), default=0)
            status = f"{run.status}, repeats a seed: not counted" if run in group.repeats else run.status
            spent = run.result.total("bytes_up") + run.result.total("bytes_down")
            own = {
                "split": collection.splits[group.split],
                "algorithm": collection.variants[group.variant],
                "seed": run.seed,
                "status": status,
                "rounds": rounds,
                "final": run.result.last(measure.column),
                "best": measure.best_of(run),
                "bytes": spent,
                "seconds": run.result.total("seconds"),
                "directory": str(run.directory),
            }
            tidy.append(own)
            rows.append(
                [
                    *(str(own[name]) for name in ("split", "algorithm", "seed", "status", "rounds")),
                    number(own["final"], measure),  # type: ignore[arg-type]
                    number(own["best"], measure),  # type: ignore[arg-type]
                    number(spent / 1e6),
                    number(run.result.total("seconds")),
                    str(run.directory),
                ]
            )
    for directory, reason in collection.unreadable.items():
        tidy.append({"status": f"unreadable: {reason}", "directory": str(directory)})
        rows.append([NOTHING, NOTHING, NOTHING, f"unreadable: {reason}", *[NOTHING] * 5, str(directory)])
    head = ["split", "algorithm", "seed", "status", "rounds", "final", "best", "MB", "seconds", "directory"]
    return Table("runs", "Every run", "", frame_of(tidy), head, rows, texts=2)


# ------------------------------------------------------------------------------------------------------ details


def _names(found: Findings, outcome: VariantResult) -> dict[str, str]:
    collection, group = found.collection, outcome.group
    return {"split": collection.splits[group.split], "algorithm": collection.variants[group.variant]}


def _numbers(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {f"{name}_{part}": None for part in ("n", "mean", "sd", "low", "high")}
    half = value.half_width
    return {
        f"{name}_n": value.n,
        f"{name}_mean": value.mean,
        f"{name}_sd": value.sd,
        f"{name}_low": None if half is None else value.mean - half,
        f"{name}_high": None if half is None else value.mean + half,
    }


def _merged(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {key: value for part in parts for key, value in part.items()}


def _scaled(value: Estimate | None, factor: float) -> Estimate | None:
    if value is None:
        return None
    sd, half = (None if part is None else factor * part for part in (value.sd, value.half_width))
    return Estimate(value.n, factor * value.mean, sd, half)


def _measure_name(found: Findings) -> str:
    names = dict.fromkeys(one.measure.name + " (%)" * one.measure.percent for one in found.by_split)
    return " or ".join(names)
