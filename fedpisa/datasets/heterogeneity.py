"""Measures of the differences between the clients of a partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Indices, Targets


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Heterogeneity:
    """Measures of heterogeneity of N clients with n_i samples each, n in all, and C classes.

    ``p_i`` is the label distribution of client i, and ``p = sum_i (n_i/n) p_i`` is that of all clients together. The
    measures of labels are ``None`` for regression and for data without labels.

    Parameters
    ----------
    sizes
        n_i, ``(N,)``.
    effective_clients
        ``1 / sum_i (n_i/n)^2``: N for equal sizes, near 1 if one client has nearly all samples.
    label_counts
        Samples of each client and class, ``(N, C)``.
    jensen_shannon
        Mean over clients of the Jensen-Shannon distance between ``p_i`` and ``p``, in [0, 1]. The distance is
        the square root of the divergence to base 2.
    hellinger
        Mean over clients of the Hellinger distance ``sqrt(1 - sum_c sqrt(p_i(c) p(c)))``, in [0, 1].
    earth_mover
        ``sum_i (n_i/n) sum_c |p_i(c) - p(c)|``, in [0, 2]. Clients are weighted by size, as in Zhao et al.; in
        the two means above all clients have equal weight.

    References
    ----------
    Y. Zhao et al., Federated Learning with Non-IID Data, arXiv:1806.00582.
    """

    sizes: NDArray[np.int64]
    effective_clients: float
    label_counts: NDArray[np.int64] | None = None
    jensen_shannon: float | None = None
    hellinger: float | None = None
    earth_mover: float | None = None


def heterogeneity(
    labels: Targets | None, partition: Sequence[Indices], num_classes: int | None
) -> Heterogeneity:
    """Measure how much the clients' sizes and label distributions differ.

    Parameters
    ----------
    labels
        Labels of the training set, ``(n,)``; not needed if ``num_classes`` is ``None``.
    partition
        Indices of each client; samples that no client has are ignored.
    num_classes
        Number of classes, or ``None`` for regression and for data without labels.

    Examples
    --------
    >>> import numpy as np
    >>> alike = heterogeneity(np.array([0, 1, 0, 1]), [np.array([0, 1]), np.array([2, 3])], 2)
    >>> alike.effective_clients, alike.jensen_shannon, alike.hellinger, alike.earth_mover
    (2.0, 0.0, 0.0, 0.0)
    >>> apart = heterogeneity(np.array([0, 0, 1, 1]), [np.array([0, 1]), np.array([2, 3])], 2)
    >>> apart.label_counts.tolist(), apart.earth_mover
    ([[2, 0], [0, 2]], 1.0)
    """
    sizes = np.array([len(part) for part in partition], np.int64)
    if num_classes is None or labels is None:
        return Heterogeneity(sizes=sizes, effective_clients=_effective_clients(sizes))
    return heterogeneity_of(count_labels(labels[np.concatenate(partition)], sizes, num_classes))


def count_labels(labels: Targets, sizes: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Return the samples of each client and class ``(N, C)``.

    Parameters
    ----------
    labels
        Labels of the samples, sorted by client.
    sizes
        Number of samples of each client, ``(N,)``.
    num_classes
        Number of classes C.

    Examples
    --------
    >>> count_labels(np.array([0, 1, 1]), np.array([1, 2]), 2).tolist()
    [[1, 0], [0, 2]]
    """
    cell = np.repeat(np.arange(len(sizes)), sizes) * num_classes + labels
    return np.bincount(cell, minlength=len(sizes) * num_classes).reshape(-1, num_classes)


def heterogeneity_of(counts: NDArray[np.int64]) -> Heterogeneity:
    """Return the measures of the samples of each client and class ``(N, C)``."""
    sizes = counts.sum(axis=1)
    weights = sizes / sizes.sum()
    p_i = counts / sizes[:, None]
    p = counts.sum(axis=0) / sizes.sum()
    middle = (p_i + p) / 2
    divergence = (_relative_entropy(p_i, middle) + _relative_entropy(p, middle)) / 2
    affinity = np.sqrt(p_i * p).sum(axis=1)
    return Heterogeneity(
        sizes=sizes,
        effective_clients=_effective_clients(sizes),
        label_counts=counts,
        # Rounding can make a distance of zero slightly negative before the root.
        jensen_shannon=float(np.sqrt(np.maximum(divergence, 0.0)).mean()),
        hellinger=float(np.sqrt(np.maximum(1.0 - affinity, 0.0)).mean()),
        earth_mover=float(weights @ np.abs(p_i - p).sum(axis=1)),
    )


def _effective_clients(sizes: NDArray[np.int64]) -> float:
    return float(1.0 / np.sum((sizes / sizes.sum()) ** 2))


def _relative_entropy(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Kullback-Leibler divergence in bits along the last axis; ``q > 0`` where ``p > 0``."""
    ratio = np.divide(p, q, out=np.ones(np.broadcast_shapes(p.shape, q.shape)), where=p > 0)
    entropy: NDArray[np.float64] = np.sum(p * np.log2(ratio), axis=-1)
    return entropy
