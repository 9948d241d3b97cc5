"""Turning what a user's own data function returns into a Dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedpisa.control.environments import Environments
from fedpisa.datasets.base import Dataset, Features, Generated, Indices, Samples, Targets, train_test_split
from fedpisa.datasets.inputs import Several, is_several, rows_of, stacked
from fedpisa.datasets.labels import known_targets, targets_of
from fedpisa.rng import generator


def as_dataset(name: str, made: object, seed: int) -> Dataset:
    """Return a Dataset from one of ours, `Environments`, a PyTorch data set, or a (training, test) pair of these.

    A single PyTorch data set is split 80/20, stratified and drawn from the seed. Features are used as they
    come; those of a sample may be several, in a dictionary or a tuple, see `Dataset.of`. What the targets are decides
    `fedpisa.datasets.labels`.

    Raises
    ------
    ValueError
        If it is none of these, or its samples are not pairs of equally shaped features and one target.
    """
    if isinstance(made, Dataset):
        return made
    if isinstance(made, Environments):
        return without_samples(name, made)
    if isinstance(made, tuple) and len(made) == 2:
        (x_train, y_train), (x_test, y_test) = (_stack(name, part) for part in made)
    else:
        x, y = _stack(name, made)
        train, test = train_test_split(y, 0.2, generator(seed, "own-split"))
        x_train, y_train, x_test, y_test = rows_of(x, train), y[train], rows_of(x, test), y[test]
    classes, y_train = targets_of(f"dataset {name}", y_train)
    y_test = known_targets(f"dataset {name}", classes, y_test)
    return Dataset.of(
        name,
        (x_train, y_train),
        (x_test, y_test),
        num_classes=None if classes is None else len(classes),
        classes=None if classes is None else tuple(map(str, classes)),
        default_model="linear" if classes is None else "logistic",
    )


def without_samples(name: str, environments: Environments, **fields: Any) -> Dataset:
    """Return the data set of clients that have an environment: a sample is only the number of its client.

    What a client learns from is made by the model; see `fedpisa.clients.rollouts`. ``fields`` are further fields of
    the data set.
    """
    shape = environments.observation_shape

    def make(client_n: Indices, k_n: Indices) -> Samples:
        return np.zeros((len(client_n), *shape), np.float32), client_n.astype(np.float64)

    clients = np.arange(environments.num_clients)
    sizes_N = np.full(environments.num_clients, environments.num_samples)
    return Dataset.of(
        name,
        make(clients[:1], clients[:1]),
        make(clients, clients),
        num_classes=None,
        default_model="actor-critic",
        generated=Generated(sizes_N, make),
        environments=environments,
        **fields,
    )


def _stack(name: str, dataset: Any) -> tuple[Features | Several, Targets]:
    """Return all features and targets of a map-style PyTorch data set."""
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ValueError(
            f"dataset {name} gave a {type(dataset).__name__}; return a fedpisa Dataset, a map-style torch "
            "Dataset, or a pair (training, test) of torch Datasets"
        )
    if len(dataset) == 0:
        raise ValueError(f"dataset {name} is empty; return at least two samples")
    samples: Sequence[Any] = [dataset[index] for index in range(len(dataset))]
    try:
        each = [features for features, _ in samples]
        x = stacked(each) if is_several(each[0]) else np.stack([np.asarray(features) for features in each])
        y = np.array([np.asarray(target).item() for _, target in samples])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"dataset {name} does not give (features, target) pairs of one shape ({error}); "
            "resize or pad the features and give one number as target, or return a fedpisa Dataset"
        ) from error
    kinds = x.dtype if isinstance(x, np.ndarray) else "several"
    if y.dtype.kind not in "fiub" or (isinstance(x, np.ndarray) and x.dtype.kind not in "fiub"):
        raise ValueError(f"dataset {name} gives {kinds} features and {y.dtype} targets; give numbers")
    if isinstance(x, np.ndarray) and x.dtype not in (np.float32, np.float64):
        x = x.astype(np.float32)
    return x, y.astype(np.float64 if y.dtype.kind == "f" else np.int64)
