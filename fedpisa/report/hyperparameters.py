"""The hyper-parameters of a study as a table for a paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from fedpisa.config.run import run_keys
from fedpisa.report.runs import text_of
from fedpisa.report.table import Table
from fedpisa.studies.splits import BOOKKEEPING, SETTING

if TYPE_CHECKING:
    from fedpisa.report.runs import Collection

KEPT = (*SETTING, "num-server-rounds")
"""Keys of a run that stand in the table also with their default."""


def hyperparameters(collection: Collection) -> Table:
    """Return the keys of all runs: first those that the algorithms share, then those of each algorithm.

    A swept key has all its values. If an algorithm's value depends on the split, each value has its splits. A key of
    the run itself, such as ``dropout``, is left out if all runs have the default.
    """
    defaults = {name: text_of(key.default) for name, key in run_keys().items() if name not in KEPT}
    values = {
        name: [_value(collection, name, variant) for variant in range(len(collection.variants))]
        for name in dict.fromkeys(key for run in collection.runs for key in run.keys)
        if name not in BOOKKEEPING
    }
    values = {name: cells for name, cells in values.items() if set(cells) != {defaults.get(name)}}
    shared = [[name, cells[0], *[""] * len(cells)] for name, cells in values.items() if len(set(cells)) == 1]
    seeds = ", ".join(map(str, sorted({run.seed for run in collection.runs})))
    shared.append(["seeds", seeds, *[""] * len(collection.variants)])
    own = [[name, "", *cells] for name, cells in values.items() if len(set(cells)) > 1]
    head = ["key", "all algorithms", *collection.variants]
    return Table(
        "hyperparameters",
        "Hyper-parameters",
        "Keys that all algorithms share come first.",
        pd.DataFrame([*shared, *own], columns=pd.Index(head)),
        head,
        [*shared, *own],
        texts=len(head),
        rules=frozenset({len(shared)} if own else ()),
    )


def _value(collection: Collection, name: str, variant: int) -> str:
    """Return the value of a variant's key, or its values; each has its splits unless the key defines the splits."""
    by_value: dict[str, list[str]] = {}
    swept = False
    for group in collection.groups:
        if group.variant != variant:
            continue
        for text in dict.fromkeys(text_of(run.keys[name]) for run in group.runs if name in run.keys):
            by_value.setdefault(text, []).append(collection.splits[group.split])
        swept = swept or any(name in run.split_keys for run in group.runs)
    if len(by_value) < 2 or swept:
        return ", ".join(by_value)
    return "; ".join(f"{text} ({', '.join(splits)})" for text, splits in by_value.items())
