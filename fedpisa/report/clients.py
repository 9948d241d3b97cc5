"""The clients of a report: the labels that each holds, and the final model's accuracy on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from typing import TYPE_CHECKING, Any, final

import numpy as np
from numpy.typing import NDArray

from fedpisa.runs.per_client import require_parquet
from fedpisa.runs.reading import RunReader
from fedpisa.runs.results import load_result
from fedpisa.simulation.federation import build_model, load_dataset, split_dataset

if TYPE_CHECKING:
    from fedpisa.datasets import Dataset, Heterogeneity, Indices
    from fedpisa.report.runs import Collection, Group, Run

_LOG = getLogger("fedpisa")

WORST = 0.1
"""The share of the clients, at least one, whose mean accuracy is the worst 10%."""
AGREEMENT = 1e-3
"""Tolerance between the test accuracy of a stored model and the last one that its run measured."""


@final
@dataclass(frozen=True, eq=False)
class SplitPicture:
    """The clients of one split at one seed.

    Parameters
    ----------
    split, seed
        Number of the split, and the seed.
    statistics
        Sizes, and counts of labels if the data could be loaded.
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


@final
class Data:
    """The runs' data, loaded on first use.

    Parameters
    ----------
    wanted
        Whether data may be loaded at all.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted
        self._key: object = None
        self._found: tuple[Dataset, list[Indices]] | str = ""

    def of(self, run: Run) -> Dataset | str:
        """Return the run's data, or the reason why they are not available."""
        if not self._wanted:
            return "the data were not loaded (--no-data)"
        key = (sorted(run.split_keys.items(), key=str), run.keys.get("data-dir"), run.seed)
        if key != self._key:
            self._key, self._found = key, _load(run)
        if isinstance(self._found, str):
            return self._found
        dataset, partition = self._found
        same = _same(partition, run.result.partition)
        return dataset if same else "the loaded data do not give the partition in partition.npz"


def _load(run: Run) -> tuple[Dataset, list[Indices]] | str:
    try:
        config = run.result.config
        return split_dataset(config, load_dataset(config))
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # a user's own data may fail in any way
        return f"the data are not available ({' '.join(str(error).split())})"


def picture(group_runs: Sequence[Run], split: int, data: Data) -> SplitPicture | None:
    """Return the split at the smallest seed, or ``None`` if no run stored its partition."""
    from fedpisa.datasets import heterogeneity

    kept = [run for run in group_runs if run.result.partition]
    if not kept:
        return None
    run = min(kept, key=lambda one: one.seed)
    partition = run.result.partition
    found = data.of(run)
    if isinstance(found, str):
        statistics = heterogeneity(np.zeros(0), partition, None)
        return SplitPicture(split, run.seed, statistics, deciles=False, note=found)
    labels, classes = found.y_train, found.num_classes
    if classes is None:
        deciles = np.quantile(labels, np.linspace(0, 1, 11)[1:-1])
        labels, classes = np.searchsorted(deciles, labels), 10
    statistics = heterogeneity(labels, partition, classes)
    return SplitPicture(split, run.seed, statistics, found.num_classes is None, note="")


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


def fairness(collection: Collection, data: Data) -> list[Fairness]:
    """Return the final models' accuracies over the clients, for every group with a finished run."""
    found: dict[int, tuple[Group, dict[int, NDArray[np.float64]], list[str], list[str]]] = {}
    finished = [(group, run) for group in collection.groups for run in group.finished.values()]
    # Sorted so that runs with the same data are adjacent, and the data are loaded once.
    for group, run in sorted(finished, key=lambda pair: (pair[0].split, pair[1].seed)):
        _, by_seed, sources, notes = found.setdefault(id(group), (group, {}, [], []))
        kept = kept_accuracies(run)
        accuracies = evaluated_accuracies(run, data) if kept is None else kept
        if isinstance(accuracies, str):
            notes.append(accuracies)
            continue
        by_seed[run.seed] = accuracies
        samples = "training samples" if kept is None else "samples (clients.parquet)"
        sources.append(f"each client's own {samples}")
    return [
        Fairness(group, by_seed, " and ".join(dict.fromkeys(sources)), "; ".join(dict.fromkeys(notes)))
        for group, by_seed, sources, notes in found.values()
    ]


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
        _LOG.warning("%s: it is left out", error)
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


def evaluated_accuracies(run: Run, data: Data) -> NDArray[np.float64] | str:
    """Return the stored model's accuracy on each client's training samples, or the reason if there is none."""
    found = data.of(run)
    if isinstance(found, str):
        return found
    if found.num_classes is None:
        return "a regression has no accuracy"
    from fedpisa.datasets.client_data import ClientData

    parameters = load_result(run.directory).parameters
    if not parameters:
        return "there is no model.safetensors"
    try:
        task, params_P, buffers_Q, dtype = _kept_model(run, found, parameters)
    except (ValueError, RuntimeError) as error:
        return f"the stored model does not fit the configuration ({' '.join(str(error).split())[:200]})"
    everything = [np.arange(len(found.y_test))]
    test = ClientData.of(found.x_test, found.y_test, everything, dtype)
    now = task.evaluate(params_P, buffers_Q, test.x, test.y)["accuracy"]
    then = run.result.last("test_accuracy")
    if then is not None and abs(now - then) > AGREEMENT:
        return f"the stored model has test accuracy {now:.4f} on the loaded data, its run measured {then:.4f}"
    clients = ClientData.of(found.x_train, found.y_train, run.result.partition, dtype)
    accuracies = [
        task.evaluate(params_P, buffers_Q, *clients.client(client))["accuracy"]
        for client in range(clients.num_clients)
    ]
    return np.array(accuracies)


def _kept_model(run: Run, dataset: Dataset, parameters: Mapping[str, NDArray[Any]]) -> Any:
    import torch

    from fedpisa.tasks.modules import in_dtype
    from fedpisa.tasks.task import Task

    dtype: torch.dtype = getattr(torch, run.result.config.dtype)
    module = in_dtype(build_model(run.result.config, dataset), dtype)
    module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in parameters.items()})
    task = Task(module, dataset.num_classes)
    return task, task.initial_params(), task.initial_buffers(), dtype


def worst(accuracies: NDArray[np.float64]) -> float:
    """Return the mean accuracy of the worst tenth of the clients, at least one client.

    Examples
    --------
    >>> worst(np.array([0.9, 0.1, 0.5]))
    0.1
    """
    number = max(1, math.floor(WORST * len(accuracies) + 1e-9))
    return float(np.sort(accuracies)[:number].mean())
