"""The report as one HTML page: a template filled with texts and data, with its style and script inline."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from fedpisa import __version__
from fedpisa.report import curves, generated, summary, tunings
from fedpisa.report.clients import worst
from fedpisa.report.runs import text_of

if TYPE_CHECKING:
    from fedpisa.report.clients import Fairness, SplitPicture
    from fedpisa.report.findings import Findings, SplitFindings, Target
    from fedpisa.report.runs import Collection, Run
    from fedpisa.report.table import Table
    from fedpisa.report.tunings import Tuning

MOST_CLIENTS = 200
"""Maximum clients of a split in its picture."""
MOST_PAIRS = 15
"""Comparisons up to which all are shown; of more, only those with the best variant."""
QUANTILES = 101
"""Quantiles that represent a group of more clients than this."""


def render(
    found: Findings,
    tables: Mapping[str, Table],
    pictures: Sequence[SplitPicture],
    fairness: Sequence[Fairness],
    tuned: Sequence[Tuning],
    damaged: Sequence[str],
    title: str,
) -> str:
    """Return the page.

    Parameters
    ----------
    found
        Results on all splits.
    tables
        Tables by name.
    pictures, fairness
        Label counts and accuracies of the clients.
    tuned, damaged
        What tuning cost and found, and warnings about its files.
    title
        Heading of the page; it is escaped.
    """
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_asset),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    collection = found.collection
    residuals = curves.chart(collection, curves.residuals(collection))
    made = generated.images(collection)
    heading = _heading(found.by_split)
    answers = summary.answers(found)
    data: dict[str, Any] = {
        "variants": list(collection.variants),
        "splits": list(collection.splits),
        "references": sorted(collection.references),
        "targets": [_drawn_target(one.target) for one in found.by_split],
        "curves": curves.chart(collection, curves.convergence(collection)),
        "residuals": residuals,
        "pictures": [_picture(one) for one in pictures],
        "tunings": [tunings.picture(one) for one in tuned],
        "clients": [_strip(one) for one in fairness if one.by_seed],
    }
    sections = [
        ("answer", "Answer"),
        ("curves", "Convergence"),
        ("tables", heading),
        ("comparisons", "Comparisons"),
        ("costs", "Cost"),
        *([("tuning-section", "Tuning")] if tuned else []),
        ("splits", "Labels by client"),
        ("clients-section", f"{heading} by client"),
        *([("residuals", "Residuals")] if residuals["metrics"] else []),
        *([("generated", "Generated samples")] if made else []),
        ("what", "What was run"),
    ]
    return environment.get_template("page.html").render(
        title=title,
        heading=heading,
        subtitle=_subtitle(collection),
        css=Markup(_asset("page.css")),
        js=Markup(_asset("page.js")),
        data=data,
        sections=sections,
        several=len(collection.splits) > 1,
        overall=bool(found.means),
        answers=answers,
        cautions=summary.cautions(answers),
        warnings=[*summary.warnings(found), *tunings.cautions(tuned, collection), *damaged],
        tables=tables,
        comparisons_of_best=_comparisons_of_best(tables["significance"]),
        targets=_targets(found),
        curves_note=_curves_note(collection, data["curves"]),
        split_notes=_split_notes(collection, pictures),
        clients_note=_clients_note(fairness),
        any_clients=any(one.by_seed for one in fairness),
        client_notes=_client_notes(collection, fairness),
        residuals=bool(residuals["metrics"]),
        generated=made,
        info=[*_info(collection), ("tuning", _tuning(tuned))],
        own_keys=_own_keys(collection),
        common=[(name, text_of(value)) for name, value in collection.common.items()],
        version=__version__,
    )


def _asset(name: str) -> str:
    return (files("fedpisa.report") / "assets" / name).read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------- what the script draws


def _picture(one: SplitPicture) -> dict[str, Any]:
    statistics = one.statistics
    counts = statistics.label_counts
    return {
        "split": one.split,
        "seed": one.seed,
        "sizes": statistics.sizes[:MOST_CLIENTS].tolist(),
        "counts": None if counts is None else counts[:MOST_CLIENTS].tolist(),
        "deciles": one.deciles,
        "note": _indices(one),
    }


def _indices(one: SplitPicture) -> str:
    statistics = one.statistics
    clients = len(statistics.sizes)
    parts = [f"effective number of clients {statistics.effective_clients:.2f} of {clients}"]
    if statistics.jensen_shannon is not None:
        parts.append(f"mean Jensen-Shannon distance to all labels {statistics.jensen_shannon:.3f}")
    if clients > MOST_CLIENTS:
        parts.append(f"the first {MOST_CLIENTS} of {clients} clients are drawn")
    return "; ".join(parts)


def _strip(one: Fairness) -> dict[str, Any]:
    values = np.sort(np.concatenate(list(one.by_seed.values())))
    drawn = values if len(values) <= QUANTILES else np.quantile(values, np.linspace(0, 1, QUANTILES))
    return {
        "split": one.group.split,
        "variant": one.group.variant,
        "values": [round(value, 5) for value in drawn.tolist()],
        "percent": one.measure.percent,
        "name": one.measure.name.removeprefix("test "),
        "mean": float(np.mean([values.mean() for values in one.by_seed.values()])),
        "worst": float(np.mean([worst(found, one.measure) for found in one.by_seed.values()])),
        "median": float(np.median(values)),
        "clients": max(map(len, one.by_seed.values())),
        "seeds": len(one.by_seed),
    }


# ------------------------------------------------------------------------------------------------------- its texts


def _subtitle(collection: Collection) -> str:
    runs = collection.runs
    parts = (
        (len(runs), "run"),
        (len(collection.variants) - len(collection.references), "algorithm"),
        *([(len(collection.references), "reference")] if collection.references else []),
        (len(collection.splits), "split"),
        (len({run.seed for run in runs}), "seed"),
    )
    return ", ".join(f"{n} {noun}{'s' * (n != 1)}" for n, noun in parts)


def _comparisons_of_best(table: Table) -> list[Sequence[str]]:
    """Return the comparisons with each split's best, which its first row names; all if they are few."""
    if len(table.rows) <= MOST_PAIRS:
        return list(table.rows)
    best: dict[str, str] = {}
    for row in table.rows:
        best.setdefault(row[0], row[1])
    return [row for row in table.rows if row[1] == best[row[0]]]


def _heading(found: Iterable[SplitFindings | Fairness]) -> str:
    """Return the name of the measure as a heading."""
    names = dict.fromkeys(one.measure.name.removeprefix("test ") for one in found)
    text = " or ".join(names) or "accuracy"
    return text[0].upper() + text[1:]


def _drawn_target(target: Target | None) -> dict[str, Any] | None:
    return (
        None if target is None else {"id": target.measure.column, "value": target.value, "text": target.text}
    )


def _targets(found: Findings) -> list[str]:
    lines = {
        f"Target {one.target.text} on {found.collection.splits[one.split]}: {one.target.source}."
        for one in found.by_split
        if one.target
    }
    common = {one.target for one in found.by_split}
    if len(common) == 1 and (target := next(iter(common))) is not None:
        return [f"Target {target.text} {target.measure.name}: {target.source}."]
    return sorted(lines)


def _curves_note(collection: Collection, chart: Mapping[str, Any]) -> str:
    notes = []
    single = {group.variant for group in collection.groups if len(group.drawn) == 1}
    if single:
        names = ", ".join(collection.variants[variant] for variant in sorted(single))
        notes.append(f"Only one seed on at least one split: {names}.")
    if any(metric["id"] in ("objective", "gradient_norm") for metric in chart["metrics"]):
        notes.append("The objective and its gradient include each algorithm's regularization.")
    rounds = max((len(run.result.rows) for run in collection.runs), default=0)
    if rounds > curves.MOST_POINTS:
        notes.append(f"One in {-(-rounds // curves.MOST_POINTS)} of {rounds - 1} rounds is drawn.")
    return " ".join(notes)


def _split_notes(collection: Collection, pictures: Iterable[SplitPicture]) -> list[str]:
    pictured = {one.split for one in pictures}
    missing = [
        f"{label}: no run stored its partition"
        for split, label in enumerate(collection.splits)
        if split not in pictured
    ]
    return [f"{collection.splits[one.split]}: {one.note}" for one in pictures if one.note] + missing


def _clients_note(fairness: Sequence[Fairness]) -> str:
    sources = dict.fromkeys(one.source for one in fairness if one.source)
    if not sources:
        return "No values by client."
    name = _heading(fairness)
    return f"{name} of the final model on {' or '.join(sources)}; each mark is a client, of all seeds."


def _client_notes(collection: Collection, fairness: Iterable[Fairness]) -> list[str]:
    notes: dict[tuple[str, str], list[str]] = {}
    for one in fairness:
        if one.note:
            place = (collection.splits[one.group.split], one.note)
            notes.setdefault(place, []).append(collection.variants[one.group.variant])
    return [f"{split}, {', '.join(names)}: {note}" for (split, note), names in notes.items()]


def _info(collection: Collection) -> list[tuple[str, str]]:
    runs = collection.runs
    statuses = [run.status for run in runs] + ["unreadable"] * len(collection.unreadable)
    statuses += ["not started"] * len(collection.missing)
    counted = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    seconds = sum(run.result.total("seconds") for run in runs)
    return [
        ("runs", counted),
        ("algorithms", "; ".join(collection.variants)),
        ("splits", "; ".join(collection.splits)),
        ("seeds", ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))),
        ("rounds", ", ".join(str(n) for n in sorted({run.result.config.num_server_rounds for run in runs}))),
        ("training time", f"{seconds:,.1f} s in all"),
        ("versions", _distinct(runs, "versions")),
        ("machine", _distinct(runs, "machine")),
        *(("differential privacy", text) for text in _privacy(runs)),
    ]


def _tuning(tuned: Sequence[Tuning]) -> str:
    named = ", ".join(str(one.directory) for one in tuned)
    return named or "not named: add the directory of fedpisa tune to see how the hyper-parameters were chosen"


def _privacy(runs: Iterable[Run]) -> list[str]:
    """Return what differential privacy protects, one line for all runs that have it."""
    records = [(run.name, run.info["privacy"]) for run in runs if isinstance(run.info.get("privacy"), dict)]
    if not records:
        return []
    from fedpisa.simulation.privacy import sentence

    return ["; ".join(dict.fromkeys(f"{name}: {sentence(record)}" for name, record in records))]


def _distinct(runs: Iterable[Run], fact: str) -> str:
    """Return an entry of ``run.json`` as text, with each different value if the runs differ."""
    found = []
    for run in runs:
        values = run.info.get(fact)
        if isinstance(values, dict):
            found.append(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in values.items()))
    return "; ".join(dict.fromkeys(found)) or "not recorded"


def _own_keys(collection: Collection) -> list[tuple[str, str]]:
    """Return the keys of splits and variants that differ between runs, with all their values."""
    rows: list[tuple[str, str]] = []
    for split, label in enumerate(collection.splits):
        runs = [run for group in collection.of_split(split) for run in group.runs]
        rows.append((label, _assignments([run.split_keys for run in runs], collection.differing)))
    for variant, label in enumerate(collection.variants):
        runs = [run for group in collection.groups if group.variant == variant for run in group.runs]
        rows.append((label, _assignments([run.variant_keys for run in runs], collection.differing)))
    other = [
        {k: v for k, v in run.keys.items() if k not in run.split_keys and k not in run.variant_keys}
        for run in collection.runs
    ]
    rows.append(("what is measured or stored", _assignments(other, collection.differing)))
    return [(label, keys) for label, keys in rows if keys]


def _assignments(mappings: Sequence[Mapping[str, object]], names: Iterable[str]) -> str:
    parts = []
    for name in names:
        values = dict.fromkeys(text_of(one[name]) for one in mappings if name in one)
        if values:
            parts.append(f"{name} = {' or '.join(values)}")
    return ", ".join(parts)
