"""The report's answers in words: the best algorithm, the significance of its lead, and its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from fedpisa.report.clients import unlike_seeds
from fedpisa.report.formatting import difference, number, p_value, spread
from fedpisa.report.statistics import POWER, SIGNIFICANCE, Comparison, smallest_wilcoxon_p
from fedpisa.tasks.measures import Measure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fedpisa.report.findings import Findings, SplitFindings, VariantResult


@final
@dataclass(frozen=True)
class Answer:
    """The answer for one split, or for all splits.

    Parameters
    ----------
    title
        The split.
    best
        The best variant; empty if none can be ranked.
    value
        Its final accuracy or loss.
    sentences
        Significance and cost, in sentences.
    caution
        A limit of the tests that the number of pairs implies.
    """

    title: str
    best: str
    value: str
    sentences: Sequence[str]
    caution: str = ""


def answers(found: Findings) -> list[Answer]:
    """Return an answer for each split; with several, the one for all splits comes first."""
    splits = [_of_split(found, one) for one in found.by_split]
    return [_overall(found), *splits] if found.means else splits


def cautions(found: Sequence[Answer]) -> list[str]:
    """Return the cautions of the answers without duplicates."""
    return list(dict.fromkeys(one.caution for one in found if one.caution))


def warnings(found: Findings) -> list[str]:
    """Return what a reader must know before using any number."""
    collection = found.collection
    lines = [
        f"{collection.variants[group.variant]} on {collection.splits[group.split]}: {group.note}"
        + (
            f"; its numbers use only the {_count(len(group.finished), 'finished run')}"
            if group.finished
            else ""
        )
        for group in collection.groups
        if group.others
    ]
    for group in collection.groups:
        lines += [f"{run.directory} repeats seed {run.seed} and is not counted" for run in group.repeats]
    lines += [f"{directory} cannot be read: {reason}" for directory, reason in collection.unreadable.items()]
    for split, label in enumerate(collection.splits):
        unlike = unlike_seeds([run for group in collection.of_split(split) for run in group.runs])
        if unlike:
            seeds = ", ".join(map(str, unlike))
            lines.append(
                f"{label}: the runs of seed {seeds} have different partitions, so they cannot be paired"
            )
    if collection.missing:
        lines.append(f"{_count(len(collection.missing), 'run')} not started: {'; '.join(collection.missing)}")
    if "num-server-rounds" in collection.differing:
        lines.append("the runs differ in num-server-rounds: their final values have different budgets")
    if early := [run.last_round for run in collection.runs if run.result.stopped_early]:
        lines.append(
            f"early-stopping ended {_count(len(early), 'run')}, after {min(early)} to {max(early)} rounds: their final "
            "values have different budgets, and a mean curve ends with its shortest run"
        )
    is_game = any(run.result.config.task == "gan" for run in collection.runs)
    if is_game and any(one.measure.column == "test_loss" for one in found.by_split):
        lines.append(
            "the algorithms are ranked by the critic's loss, which a poor generator lowers too: set fid-samples"
        )
    versions_of = [run.info.get("versions") for run in collection.runs]
    versions = {str(one.get("fedpisa")) for one in versions_of if isinstance(one, dict)}
    if len(versions) > 1:
        lines.append(f"the runs are of different versions of fedpisa: {', '.join(sorted(versions))}")
    return lines


def _overall(found: Findings) -> Answer:
    measure = found.by_split[0].measure
    order = list(found.means)
    sentences = [f"Mean over the {len(found.by_split)} splits of the final {measure.name}."]
    caution = ""
    if len(order) > 1:
        one = found.pooled[order[0], order[1]]
        said, caution = _compared(found, measure, order[1], one, found.means[order[1]], pooled=True)
        sentences += said
        sentences += _behind(found, order[0], order[1:], found.pooled)
    if len(order) < len(found.collection.variants) - len(found.collection.references):
        sentences.append(
            f"Only the {_count(len(order), 'algorithm')} with a finished run on every split are ranked here."
        )
    best, value = found.collection.variants[order[0]], _value(found.means[order[0]], measure)
    return Answer("All splits", best, value, sentences, caution)


def _of_split(found: Findings, one: SplitFindings) -> Answer:
    collection, measure, ranked = found.collection, one.measure, one.ranked
    title = collection.splits[one.split]
    if not ranked:
        return Answer(title, "", "", ["No run finished, so there is nothing to rank."])
    best = ranked[0]
    final = best.final
    assert final is not None
    if final.sd is None:
        sentences = [f"Final {measure.name} of a single seed: a deviation and an interval need a second one."]
    else:
        sentences = [
            f"Mean final {measure.name} of {final.n} seeds; standard deviation {_amount(final.sd, measure)}, "
            f"95% interval {number(final.low, measure)} to {_value(final.high, measure)}."
        ]
    caution = ""
    if len(ranked) > 1:
        second = ranked[1].group.variant
        assert ranked[1].final is not None
        comparison = one.comparisons[best.group.variant, second]
        said, caution = _compared(found, measure, second, comparison, ranked[1].final.mean)
        sentences += said
        others = [outcome.group.variant for outcome in ranked[1:]]
        sentences += _behind(found, best.group.variant, others, one.comparisons)
    else:
        sentences.append("No other algorithm finished on this split.")
    sentences += [*_scale(found, one), *_costs(found, one)]
    name, value = collection.variants[best.group.variant], _value(final.mean, measure)
    return Answer(title, name, value, sentences, caution)


def _scale(found: Findings, one: SplitFindings) -> list[str]:
    """Return a sentence with the references and the share of the majority class."""
    names = [found.collection.variants[o.group.variant].removeprefix("reference: ") for o in one.references]
    parts = [
        f"{name} has {_value(o.final.mean, one.measure)}"
        for name, o in zip(names, one.references, strict=True)
        if o.final
    ]
    share = found.collection.majority_share(one.split)
    if share is not None and one.measure.column == "test_accuracy":
        parts.append(f"{_value(share, one.measure)} is the majority class")
    return [f"For scale: {', '.join(parts)}."] if parts else []


def _compared(
    found: Findings, measure: Measure, second: int, one: Comparison, mean: float, pooled: bool = False
) -> tuple[list[str], str]:
    """Return the comparison of the best with the next, and a caution if the pairs are few."""
    name, n = found.collection.variants[second], one.difference.n if one.difference else 0
    next_is = f"Next is {name}, {_value(mean, measure)}"
    pairs = _count(n, "common seed") + ", each by its mean over the splits" * pooled
    if one.difference is None or n < 2:
        return [f"{next_is}; a test is not possible with {pairs}."], ""
    if one.difference.mean == 0:
        return [f"{next_is}: equal."], ""
    gap = difference(one.difference, measure) + " points" * measure.percent
    word = "significant" if one.significant else "not significant"
    method = "paired t-test" if one.difference.sd else "all differences are equal: signed-rank test"
    said = [
        f"{next_is}: {gap} on {pairs}, {word} at {SIGNIFICANCE:.0%} ({method}, corrected p {_equals(one.t_holm)})."
    ]
    if measure.percent and (seeds := one.seeds_for_a_point):
        said.append(
            f"If seeds vary as these, a significant difference of one point needs {_count(seeds, 'seed')} (power "
            f"{POWER:.0%}, uncorrected)."
        )
    least = smallest_wilcoxon_p(n)
    if least < SIGNIFICANCE:
        ranks = f"Wilcoxon's signed-rank test, which assumes no normal differences: p {_equals(one.wilcoxon_holm)}."
        return [*said, ranks], ""
    return said, (
        f"With {n} seeds no rank test can give p below {least:g}: significance rests on the t-test, which assumes "
        "approximately normal differences. Run more seeds for a stronger test."
    )


def _behind(
    found: Findings, best: int, others: Sequence[int], comparisons: Mapping[tuple[int, int], Comparison]
) -> list[str]:
    """Return a sentence with the variants that are significantly behind the best."""
    tested = [v for v in others if comparisons[best, v].t_p is not None]
    if len(tested) < 2:  # `_compared` describes the next one
        return []
    names = [found.collection.variants[v] for v in tested if comparisons[best, v].significant]
    return [
        f"Significantly behind {found.collection.variants[best]}: {', '.join(names) or 'none of the others'}."
    ]


def _equals(p: float | None) -> str:
    text = p_value(p)
    return text.replace("<", "< ") if text.startswith("<") else f"= {text}"


def _costs(found: Findings, one: SplitFindings) -> list[str]:
    target = one.target
    if target is None:
        return []
    variants = found.collection.variants
    goal = target.text if target.measure is one.measure else f"{target.text} {target.measure.name}"
    reached = [outcome for outcome in one.ranked if outcome.cost and outcome.cost.reached]
    if not reached:
        return [f"No run reached the target of {goal} ({target.source})."]
    best = one.ranked[0]
    sentences = []
    if best in reached:
        share = f" ({c.reached} of {c.of} of its seeds)" if (c := best.cost) and c.reached < c.of else ""
        sentences.append(f"Cost to {goal} ({target.source}): {_spent(best)}{share}.")
    else:
        sentences.append(f"The best does not reach the target of {goal} ({target.source}).")
    # Only variants whose seeds all reach the target: a mean over some seeds would underestimate the cost.
    always = [o for o in reached if o.cost and o.cost.reached == o.cost.of]
    cheapest = min(always, key=_megabytes, default=None)
    if cheapest is not None and cheapest is not best:
        sentences.append(f"Fewest bytes: {variants[cheapest.group.variant]}, {_spent(cheapest)}.")
    elif cheapest is best and len(always) > 1:
        follower = sorted(always, key=_megabytes)[1]
        name = variants[follower.group.variant]
        sentences.append(f"No other algorithm needs fewer bytes; next is {name}: {_spent(follower)}.")
    never = [variants[o.group.variant] for o in one.ranked if o.cost and not o.cost.reached]
    if never and best in reached:
        sentences.append(f"Never reached the target: {', '.join(never)}.")
    return sentences


def _megabytes(outcome: VariantResult) -> float:
    return outcome.cost.megabytes.mean if outcome.cost and outcome.cost.megabytes else float("inf")


def _spent(outcome: VariantResult) -> str:
    cost = outcome.cost
    assert cost is not None
    return f"{spread(cost.rounds)} rounds, {spread(cost.megabytes)} MB, {spread(cost.seconds)} s"


def _value(mean: float | None, measure: Measure) -> str:
    return number(mean, measure) + "%" * measure.percent


def _amount(value: float, measure: Measure) -> str:
    return number(value, measure) + (" points" if measure.percent else "")


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'s' * (n != 1)}"
