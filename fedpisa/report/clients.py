"""The clients of a report: the labels that each holds, and the final model's measure on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.components import LOG
from fedpisa.runs.per_client import require_parquet
from fedpisa.runs.run_files import DECILES, RunReader
from fedpisa.tasks.measures import Measure

if TYPE_CHECKING:
    from fedpisa.datasets import Heterogeneity
    from fedpisa.report.runs import Collection, Group, Run

WORST = 0.1
"""The share of the clients, at least one, whose mean is the worst 10%."""


@final
@dataclass(frozen=True, eq=False)
class SplitPicture:
    """The clients of one split at one seed.

    Parameters
    ----------
    split, seed
        Number of the split, and the seed.
    statistics
        Sizes, and counts of labels if the run stored them.
    deciles
        Whether the labels are deciles of a regression's target.
    note
        Why there are no labels.
    """

    split: int
    seed: int
    statistics: Heterogeneity
    deciles: bool
    note: str


@final
@dataclass(frozen=True, eq=False)
class Fairness:
    """The final models' measure over the clients, for one group.

    Parameters
    ----------
    group
        The group of runs.
    by_seed
        Values ``(N,)`` of each finished seed.
    source
        The samples on which they are measured.
    measure
        The measure.
    note
        The reason if values are missing.
    """

    group: Group
    by_seed: Mapping[int, NDArray[np.float64]]
    source: str
    measure: Measure
    note: str = ""


def picture(group_runs: Sequence[Run], split: int) -> SplitPicture | None:
    """Return the split at the smallest seed, or ``None`` if no run stored its partition."""
    from fedpisa.datasets.heterogeneity import heterogeneity, heterogeneity_of

    kept = [run for run in group_runs if run.result.partition]
    if not kept:
        return None
    run = min(kept, key=lambda one: (one.seed, bool(one.result.reference)))
    partition = run.result.partition
    found = RunReader(run.directory).counts()
    if found is None:
        statistics = heterogeneity(np.zeros(0), partition, None)
        return SplitPicture(
            split,
            run.seed,
            statistics,
            deciles=False,
            note="no labels by client: the data have none, or an earlier version did not store them",
        )
    kind, counts = found
    return SplitPicture(split, run.seed, heterogeneity_of(counts), kind == DECILES, note="")


def unlike_seeds(runs: Sequence[Run]) -> list[int]:
    """Return the seeds at which the runs of one split have different partitions and so cannot be paired."""
    first: dict[int, Run] = {}
    kept = [run for run in runs if run.result.partition]
    return sorted(
        {
            run.seed
            for run in kept
            if not _same(run.result.partition, first.setdefault(run.seed, run).result.partition)
        }
    )


def _same(one: Sequence[NDArray[np.int64]], other: Sequence[NDArray[np.int64]]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def fairness(collection: Collection, measures: Mapping[int, Measure]) -> list[Fairness]:
    """Return the final models' measure over the clients, for all groups with a finished run but references.

    ``measures`` has the measure of each split.
    """
    found = []
    for group in (group for group in collection.groups if not group.is_reference):
        measure = measures[group.split]
        kept = {seed: kept_values(run, measure) for seed, run in group.finished.items()}
        by_seed = {seed: values for seed, values in kept.items() if values is not None}
        if kept:
            source = "each client's own samples (clients.parquet)" if by_seed else ""
            note = "run with per-client = true to have them" if len(by_seed) < len(kept) else ""
            found.append(Fairness(group, by_seed, source, measure, note))
    return found


def kept_values(run: Run, measure: Measure) -> NDArray[np.float64] | None:
    """Return a measure's values ``(N,)`` of the last round in ``clients.parquet``.

    Return ``None`` if there is no such file, if it has no such column, or if the values are not of all clients in the
    final round.
    """
    reader = RunReader(run.directory)
    rounds = reader.client_rounds()
    if not rounds:
        return None
    try:
        require_parquet()
        frame = reader.client_table(rounds[-1])
    except ValueError as error:
        LOG.warning("%s: it is left out", error)
        return None
    name = measure.column.removeprefix("test_")
    if not {name, "round", "client"} <= set(frame.columns):
        return None
    rows = frame[frame[name].notna()]
    last = rows[rows["round"] == rows["round"].max()].sort_values("client")
    # An earlier round, or a part of the clients, does not describe the final model.
    if len(last) != run.result.config.num_clients or int(last["round"].max()) != run.last_round:
        return None
    values: NDArray[np.float64] = last[name].to_numpy(dtype=np.float64)
    return values


def worst(values: NDArray[np.float64], measure: Measure) -> float:
    """Return the mean of the worst tenth of the clients, at least one client.

    Examples
    --------
    >>> from fedpisa.tasks.measures import ACCURACY, LOSS
    >>> worst(np.array([0.9, 0.1, 0.5]), ACCURACY), worst(np.array([0.9, 0.1, 0.5]), LOSS)
    (0.1, 0.9)
    """
    number = max(1, math.floor(WORST * len(values) + 1e-9))
    ordered = np.sort(values) if measure.higher_is_better else np.sort(values)[::-1]
    return float(ordered[:number].mean())
