"""The validation samples: part of the training set, on which no client trains."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from fedpisa.datasets.base import Dataset, Indices, train_test_split
from fedpisa.rng import generator


class HeldOut(NamedTuple):
    """A data set without its validation samples, and the sorted positions of both parts in its training set."""

    dataset: Dataset
    train: Indices
    validation: Indices


def hold_out(dataset: Dataset, fraction: float, seed: int, *, in_order: bool = False) -> HeldOut:
    """Take validation samples from the training set, class by class if there are classes.

    Data without labels give them natural client by natural client, if there are these.

    The seed alone draws them, so they are the same for all algorithms and partitioners. Each class and each natural
    client keeps at least one training sample. The test set does not change, and neither does the scale of the features.
    Values in ``ground_truth`` hold for the whole training set only and are left out.

    Parameters
    ----------
    dataset
        The whole data set.
    fraction
        Share of the training samples, in [0, 1); 0 changes nothing.
    seed
        The run's seed.
    in_order
        Whether the samples' order counts, as for consecutive windows of a text. The validation samples are then the
        last ones of each natural client, or of all samples if there are none.

    Raises
    ------
    ValueError
        If there would be no validation sample, or if clients make their samples on the fly.

    Examples
    --------
    >>> import numpy as np
    >>> x, y = np.zeros((10, 1)), np.repeat([0, 1], [8, 2])
    >>> data = Dataset.of("tiny", (x, y), (x, y), num_classes=2)
    >>> held = hold_out(data, 0.5, seed=0)
    >>> len(held.train), np.bincount(y[held.validation]).tolist()
    (5, [4, 1])
    """
    n, generated = dataset.num_train, dataset.generated
    if fraction == 0:
        return HeldOut(dataset, np.arange(n), np.zeros(0, np.int64))
    if generated is not None and dataset.labels is None:
        raise ValueError(
            f"validation-fraction = {fraction:g}: {dataset.name} makes its samples client by client, so none can be "
            "set aside: set validation-fraction = 0"
        )
    rng, kept = generator(seed, "validation"), np.zeros(n, np.bool_)
    if dataset.groups is not None:
        order = rng.permutation(n)
        kept[order[np.unique(dataset.groups[order], return_index=True)[1]]] = True
    strata = dataset.split_labels
    if strata is None:
        strata = np.zeros(n, np.int64) if dataset.groups is None else dataset.groups
    train, validation = train_test_split(strata, fraction, rng, kept)
    if in_order:
        train, validation = _last_ones(strata, validation)
    if not len(validation):
        fix = (
            f"at least {1 / n:.2g}"
            if round(n * fraction) == 0
            else "0, because each class and each natural client must keep a training sample"
        )
        raise ValueError(
            f"validation-fraction = {fraction:g} takes none of the {n} training samples of {dataset.name}: set it to "
            f"{fix}"
        )
    rest = dataclasses.replace(
        dataset,
        x_train=dataset.x_train[train] if generated is None else dataset.x_train,
        y_train=dataset.y_train[train] if generated is None else dataset.y_train,
        generated=None if generated is None else generated.split([train]),
        groups=None if dataset.groups is None else dataset.groups[train],
        labels=None if dataset.labels is None else dataset.labels[train],
        ground_truth={},
    )
    return HeldOut(rest, train, validation)


def _last_ones(strata: Indices, validation: Indices) -> tuple[Indices, Indices]:
    """Return as many samples of each stratum as there are in ``validation``, but its last ones, and before it the rest.

    Examples
    --------
    >>> [part.tolist() for part in _last_ones(np.array([0, 0, 1, 1, 1]), np.array([1, 2, 3]))]
    [[0, 2], [1, 3, 4]]
    """
    is_last = np.zeros(len(strata), np.bool_)
    for value, count in zip(*np.unique(strata[validation], return_counts=True), strict=True):
        is_last[np.flatnonzero(strata == value)[-count:]] = True
    return np.flatnonzero(~is_last), np.flatnonzero(is_last)
