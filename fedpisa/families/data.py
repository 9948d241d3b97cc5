"""Data sets and their partitions by name."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedpisa.components import kebab, one_line
from fedpisa.datasets._own import as_dataset
from fedpisa.datasets.base import Dataset, Indices
from fedpisa.datasets.inputs import require_one
from fedpisa.datasets.partitioners import BY_LABEL, EFFECTS
from fedpisa.families.builder import build, checked_values
from fedpisa.families.lookup import find
from fedpisa.rng import generator


def load(
    name: str, *, seed: int = 0, data_dir: str | Path | None = None, num_clients: int = 10, **options: Any
) -> Dataset:
    """Load a data set by name, or a user's own by ``module:callable``.

    A user's callable receives the options and those of ``seed``, ``data_dir`` and ``num_clients`` that it names. It
    returns a ``Dataset``, a map-style PyTorch data set (split 80/20, seeded), or a pair of PyTorch data sets:
    training and test. The features of a PyTorch sample may be a dictionary or a tuple; see ``Dataset.of``.

    Parameters
    ----------
    name
        One of ``fedpisa list``'s data sets, or ``module:callable``.
    seed
        Seed of generated data and of the split into training and test samples.
    data_dir
        Folder of data files; by default the environment variable ``FEDPISA_DATA``, or ``data``.
    num_clients
        Number of clients, for data that is generated client by client.
    options
        The data set's own keys, with underscores.

    Raises
    ------
    ValueError
        If there is no such data set or key, a file is missing or damaged, or the data is unusable.

    Examples
    --------
    >>> data = load("digits")
    >>> data.x_train.shape, data.y_train.dtype
    ((1438, 1, 8, 8), dtype('int64'))
    """
    folder = Path(os.path.expanduser(data_dir or os.environ.get("FEDPISA_DATA") or "data"))
    component = find("dataset", name)
    keys = {kebab(key): value for key, value in options.items()}
    try:
        made = build(component, keys, seed=seed, data_dir=folder, num_clients=num_clients)
    except OSError as error:
        raise ValueError(f"data set {name!r} cannot be read: {one_line(error)}") from error
    return as_dataset(name, made, seed)


def partition(
    dataset: Dataset,
    name: str,
    *,
    num_clients: int,
    seed: int = 0,
    stored: Sequence[Indices] | None = None,
    **options: Any,
) -> tuple[Dataset, list[Indices]]:
    """Split a data set's training samples among clients.

    A partitioner gets the data's `Dataset.split_labels`, and labels of shape ``(n, 0)`` if there are none.

    Parameters
    ----------
    dataset
        The data to split.
    name
        One of ``fedpisa list``'s partitioners, or ``module:callable``.
    num_clients
        Number of clients N.
    seed
        Seed of the split.
    stored
        Each client's indices if the data was split before; the partitioner is then not called.
    options
        The partitioner's own keys, with underscores.

    Returns
    -------
    tuple
        The data as the clients see it, in which only ``feature-noise`` changes the training features, and each
        client's sorted indices into the training set.

    Raises
    ------
    ValueError
        If there is no such partitioner or key, the split is impossible, or the data has no labels to split by.

    Examples
    --------
    >>> data, parts = partition(load("digits"), "iid", num_clients=4)
    >>> [len(part) for part in parts]
    [360, 360, 359, 359]
    """
    component = find("partitioner", name)
    labels = dataset.split_labels
    if labels is None:
        if component.factory in BY_LABEL:
            first = '"iid" (or' if dataset.groups is None else '"natural" (or iid,'
            raise ValueError(f"{dataset.name} has no labels: take partitioner = {first} quantity-dirichlet)")
        labels = np.zeros((dataset.num_train, 0))
    effect = EFFECTS.get(component.factory)
    if effect is not None and dataset.generated is not None:
        raise ValueError(
            f"partitioner {name} changes stored features, and {dataset.name} makes its samples when they are needed: "
            'take another partitioner such as "iid"'
        )
    if effect is not None:
        require_one(dataset.inputs, f"partitioner {name}", 'take another partitioner such as "iid"')
    keys = {kebab(key): value for key, value in options.items()}
    made: Any = stored
    if stored is None:
        made = build(
            component,
            keys,
            # A user's partitioner may write into its arguments.
            labels=labels.copy(),
            groups=None if dataset.groups is None else dataset.groups.copy(),
            num_clients=num_clients,
            rng=generator(seed, "partition"),
        )
    parts = _parts(name, made, num_clients)
    _check_partition(name, parts, num_clients, dataset.num_train)
    if effect is not None:
        checked = {key.replace("-", "_"): value for key, value in checked_values(component, keys).items()}
        noisy = effect(dataset.x_train, parts, generator(seed, "partition-effect"), **checked)
        dataset = dataclasses.replace(dataset, x_train=noisy)
    return dataset, parts


def _parts(name: str, made: Any, num_clients: int) -> list[Indices]:
    """Return a partitioner's parts as a list. It may return any iterable, or a mapping by client number."""
    if isinstance(made, Mapping):
        if sorted(made) != list(range(num_clients)):
            raise ValueError(
                f"partitioner {name} gave a dict whose keys are not 0 to {num_clients - 1}; give one part per client"
            )
        made = [made[client] for client in range(num_clients)]
    try:
        return [np.asarray(part) for part in made]
    except TypeError as error:
        raise ValueError(
            f"partitioner {name} gave a {type(made).__name__} ({error}); give one array of indices per client"
        ) from error


def _check_partition(name: str, parts: Sequence[Indices], num_clients: int, n: int) -> None:
    """Raise a ValueError unless every client has distinct, valid indices and no sample is used twice."""
    if len(parts) != num_clients:
        raise ValueError(
            f"partitioner {name} made {len(parts)} parts for {num_clients} clients; make one each"
        )
    for client, part in enumerate(parts):
        if part.ndim != 1:
            raise ValueError(
                f"partitioner {name} gave client {client} a part of shape {part.shape}; give indices (n,)"
            )
        if not len(part):
            raise ValueError(f"partitioner {name} gave client {client} no samples; give every client one")
    indices = np.concatenate(parts)
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= n:
        raise ValueError(f"partitioner {name} gave indices outside 0 to {n - 1}; index the training samples")
    if np.bincount(indices).max() > 1:
        sample = int(np.bincount(indices).argmax())
        raise ValueError(f"partitioner {name} gave sample {sample} twice; give each sample to one client")
