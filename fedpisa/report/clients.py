"""The clients of a report: the labels that each holds, and the final model's accuracy on each."""

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

if TYPE_CHECKING:
    from fedpisa.datasets import Heterogeneity
    from fedpisa.report.runs import Collection, Group, Run

WORST = 0.1
"""The share of the clients, at least one, whose mean accuracy is the worst 10%."""


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
    """The final models' accuracies over the clients, for one group.

    Parameters
    ----------
    group
        The group of runs.
    by_seed
        Accuracies ``(N,)`` of each finished seed.
    source
        The samples on which the accuracies are measured.
    note
        The reason if accuracies are missing.
    """

    group: Group
    by_seed: Mapping[int, NDArray[np.float64]]
    source: str
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
            note="the run stored no labels by client, as earlier versions did",
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


def fairness(collection: Collection) -> list[Fairness]:
    """Return the final models' accuracies over the clients, for all groups with a finished run but references."""
    found = []
    for group in (group for group in collection.groups if not group.is_reference):
        kept = {seed: kept_accuracies(run) for seed, run in group.finished.items()}
        by_seed = {seed: accuracies for seed, accuracies in kept.items() if accuracies is not None}
        if kept:
            source = "each client's own samples (clients.parquet)" if by_seed else ""
            note = "run with per-client = true to have them" if len(by_seed) < len(kept) else ""
            found.append(Fairness(group, by_seed, source, note))
    return found


def kept_accuracies(run: Run) -> NDArray[np.float64] | None:
    """Return the accuracies ``(N,)`` of the last round in ``clients.parquet``.

    Return ``None`` if there is no such file, if it has no accuracies, or if they are not of all clients in the
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
    names = [name for name in frame.columns if str(name).endswith("accuracy")]
    names.sort(key=lambda name: ("test" not in name, "train" in name))
    if not names or not {"round", "client"} <= set(frame.columns):
        return None
    rows = frame[frame[names[0]].notna()]
    last = rows[rows["round"] == rows["round"].max()].sort_values("client")
    # An earlier round, or a part of the clients, does not describe the final model.
    if len(last) != run.result.config.num_clients or int(last["round"].max()) != run.last_round:
        return None
    accuracies: NDArray[np.float64] = last[names[0]].to_numpy(dtype=np.float64)
    return accuracies


def worst(accuracies: NDArray[np.float64]) -> float:
    """Return the mean accuracy of the worst tenth of the clients, at least one client.

    Examples
    --------
    >>> worst(np.array([0.9, 0.1, 0.5]))
    0.1
    """
    number = max(1, math.floor(WORST * len(accuracies) + 1e-9))
    return float(np.sort(accuracies)[:number].mean())
