"""Partitioners, which deal the training samples out to clients: pure functions of labels and a generator.

A partitioner maps labels ``(n,)`` to one sorted int64 index array per client. The arrays are disjoint, and every
client gets at least one sample. Only ``labels_per_client`` can leave samples out. The labels of data without any have
the shape ``(n, 0)``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fedpisa.datasets.base import Features, Indices, Targets
from fedpisa.datasets.margins import fitted, rounded
from fedpisa.typing import NonNegative, Positive, PositiveInt

_MAX_DRAWS = 1000
"""Draws of a Dirichlet split after which it is given up."""
_ALPHAS = (0.01, 1e9)
"""Least and largest concentration of `client_dirichlet`; others would give the same splits in more steps."""
_MOST_NATS = 100.0
"""Largest logarithm of the ratio of two weights of a client."""


def iid(labels: Targets, num_clients: int, rng: np.random.Generator) -> list[Indices]:
    """Shuffle the samples and deal them out evenly; sizes differ by at most one.

    Examples
    --------
    >>> import numpy as np
    >>> [len(part) for part in iid(np.zeros(10, int), 3, np.random.default_rng(0))]
    [4, 3, 3]
    """
    n = _check(labels, num_clients)
    return _deal(np.zeros(n, np.int64), _even(n, num_clients)[None], rng)


def consecutive(labels: Targets, num_clients: int, rng: np.random.Generator) -> list[Indices]:
    """Cut the samples in their order into one piece for each client; sizes differ by at most one.

    Each client of a text then has consecutive windows. The partition does not depend on the seed.

    Examples
    --------
    >>> import numpy as np
    >>> [part.tolist() for part in consecutive(np.zeros(5), 2, np.random.default_rng(0))]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(np.arange(_check(labels, num_clients)), num_clients)


def label_dirichlet(
    labels: Targets,
    num_clients: int,
    rng: np.random.Generator,
    *,
    dirichlet_alpha: Positive = 0.5,
    min_partition_size: PositiveInt = 10,
) -> list[Indices]:
    """Deal each class out by a Dirichlet draw over the clients, with NIID-Bench's balancing.

    Each class draws ``p ~ Dir(dirichlet_alpha, ..., dirichlet_alpha)`` over the clients. ``p`` is set to zero
    for clients that already have ``n / num_clients`` samples or more, and scaled to sum 1. The shuffled class
    is cut at the cumulative sums of ``p``. The whole draw is repeated until every client has its minimum.

    Parameters
    ----------
    dirichlet_alpha
        Concentration: a small value gives each class to few clients, a large one gives all clients equal shares.
    min_partition_size
        Smallest number of samples of a client.

    Raises
    ------
    ValueError
        If the minimum is impossible, or not met by any of 1,000 draws.

    References
    ----------
    Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat(np.arange(10), 100)
    >>> parts = label_dirichlet(labels, 5, np.random.default_rng(0))
    >>> sum(map(len, parts)), min(map(len, parts)) >= 10
    (1000, True)
    """
    n = _check_classes(labels, num_clients)
    _, labels = np.unique(labels, return_inverse=True)
    class_sizes = np.bincount(labels)

    def draw() -> NDArray[np.int64]:
        counts = np.zeros((len(class_sizes), num_clients), np.int64)
        sizes = np.zeros(num_clients, np.int64)
        for row, class_size in zip(counts, class_sizes, strict=True):
            shares = rng.dirichlet(np.full(num_clients, dirichlet_alpha)) * (sizes < n / num_clients)
            if not shares.sum() > 0:  # a tiny alpha gave the whole class to clients that are full
                return np.zeros_like(counts)
            row[:] = _cut(shares, int(class_size))
            sizes += row
        return counts

    return _deal(labels, _draw_until(draw, n, num_clients, min_partition_size, dirichlet_alpha), rng)


def client_dirichlet(
    labels: Targets, num_clients: int, rng: np.random.Generator, *, dirichlet_alpha: Positive = 0.5
) -> list[Indices]:
    """Give each client a mixture of classes drawn from a Dirichlet distribution; sizes differ by at most one.

    Client i draws ``p_i ~ Dir(dirichlet_alpha * C * p)``, where ``p`` is the global label distribution and the mean
    of ``p_i``; for balanced classes this is the symmetric Dirichlet. The table of clients and classes that the
    ``p_i`` give is fitted to the clients' sizes and to the classes' sizes by scaling its rows and columns in turn, and
    then rounded. No client comes last: each has the same distribution. Concentrations below 0.01, which give one class
    to nearly every client, count as 0.01, and those above 1e9 as 1e9.

    Parameters
    ----------
    dirichlet_alpha
        Concentration: a small value gives each client few classes, a large one gives all clients the same mixture.

    References
    ----------
    T.-M. H. Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification, arXiv:1909.06335.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat(np.arange(10), 100)
    >>> [len(part) for part in client_dirichlet(labels, 4, np.random.default_rng(0))]
    [250, 250, 250, 250]
    """
    n = _check_classes(labels, num_clients)
    _, labels = np.unique(labels, return_inverse=True)
    class_sizes = np.bincount(labels)
    # A gamma variate of shape a is one of shape a + 1 times U^(1/a): its logarithm does not underflow.
    shape_K = np.clip(dirichlet_alpha, *_ALPHAS) * class_sizes * (len(class_sizes) / n)
    table = (num_clients, len(class_sizes))
    log_NK = np.log(rng.standard_gamma(shape_K + 1, table)) - rng.standard_exponential(table) / shape_K
    weights_NK = np.exp(np.maximum(log_NK - log_NK.max(axis=1, keepdims=True), -_MOST_NATS))
    # Rounding prefers the first of equal clients: they stand in random order meanwhile.
    order = rng.permutation(num_clients)
    fitted_NK = fitted(weights_NK, _even(n, num_clients)[order], class_sizes)
    counts_NK = rounded(fitted_NK, class_sizes)[np.argsort(order)]
    return _deal(labels, counts_NK.T, rng)


def client_dirichlet_sequential(
    labels: Targets, num_clients: int, rng: np.random.Generator, *, dirichlet_alpha: Positive = 0.5
) -> list[Indices]:
    """Do the same as ``client-dirichlet``, one client after the other; the last clients get what remains.

    Client i draws ``p_i`` as in ``client-dirichlet``, and then its labels from ``p_i`` without replacement: a class
    without remaining samples is removed from ``p_i``. If ``p_i`` has no class left, the client draws uniformly from the
    remaining samples. Clients draw in random order until all samples are dealt out. The last clients therefore follow
    the remaining samples more than their ``p_i``: at concentration 10 the last of 20 clients is three times as far
    from ``p`` as the others. Earlier versions had this as ``client-dirichlet``.

    Parameters
    ----------
    dirichlet_alpha
        Concentration: a small value gives each client few classes, a large one gives all clients the same mixture.

    References
    ----------
    T.-M. H. Hsu et al., Measuring the Effects of Non-Identical Data Distribution for Federated Visual
    Classification, arXiv:1909.06335.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat(np.arange(10), 100)
    >>> [len(part) for part in client_dirichlet_sequential(labels, 4, np.random.default_rng(0))]
    [250, 250, 250, 250]
    """
    n = _check_classes(labels, num_clients)
    _, labels = np.unique(labels, return_inverse=True)
    left = np.bincount(labels)
    mixtures = rng.dirichlet(dirichlet_alpha * left * (len(left) / n), num_clients)
    sizes = _even(n, num_clients)
    counts = np.zeros((len(left), num_clients), np.int64)
    for client in rng.permutation(num_clients):
        missing = int(sizes[client])
        while missing:
            shares = mixtures[client] * (left > 0)
            if not shares.sum() > 0:
                shares = left.astype(np.float64)
            drawn = np.minimum(rng.multinomial(missing, shares / shares.sum()), left)
            counts[:, client] += drawn
            left -= drawn
            missing -= int(drawn.sum())
    return _deal(labels, counts, rng)


def labels_per_client(
    labels: Targets, num_clients: int, rng: np.random.Generator, *, labels_per_client: PositiveInt = 2
) -> list[Indices]:
    """Give each client samples of exactly K classes (NIID-Bench's #C = K).

    Client i holds class ``i mod C`` and K - 1 further classes drawn at random. Each class is shuffled and
    split evenly among the clients that hold it. A class that no client holds is left out; this happens only with
    fewer clients than classes.

    Parameters
    ----------
    labels_per_client
        Number of classes K of each client.

    Raises
    ------
    ValueError
        If there are fewer than K classes, or a class has fewer samples than holders.

    References
    ----------
    Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat(np.arange(3), 6)
    >>> parts = labels_per_client(labels, 6, np.random.default_rng(0), labels_per_client=1)
    >>> [np.unique(labels[part]).tolist() for part in parts]
    [[0], [1], [2], [0], [1], [2]]
    """
    _check_classes(labels, num_clients)
    values, labels = np.unique(labels, return_inverse=True)
    num_classes = len(values)
    if labels_per_client > num_classes:
        raise ValueError(
            f"labels-per-client = {labels_per_client} but there are {num_classes} classes; "
            f"set labels-per-client to at most {num_classes}"
        )
    clients = np.arange(num_clients)
    preference = rng.random((num_clients, num_classes))
    preference[clients, clients % num_classes] = -1.0  # class i mod C comes first
    chosen = np.argsort(preference, axis=1)[:, :labels_per_client]
    holds = np.zeros((num_classes, num_clients), bool)
    holds[chosen, clients[:, None]] = True

    counts = np.zeros(holds.shape, np.int64)
    for k, class_size in enumerate(np.bincount(labels)):
        holders = np.flatnonzero(holds[k])
        if class_size < len(holders):
            raise ValueError(
                f"class {values[k]} has {class_size} samples for {len(holders)} clients that hold it; "
                "lower num-clients or labels-per-client"
            )
        if len(holders):
            counts[k, holders] = _even(int(class_size), len(holders))
    return _deal(labels, counts, rng)


def shards(
    labels: Targets, num_clients: int, rng: np.random.Generator, *, shards_per_client: PositiveInt = 2
) -> list[Indices]:
    """Sort by label, cut into equal shards, and deal the shards out at random (McMahan et al.).

    There are ``num_clients * shards_per_client`` shards, whose sizes differ by at most one. Samples of the
    same label are in random order.

    Parameters
    ----------
    shards_per_client
        Number of shards of each client.

    Raises
    ------
    ValueError
        If there are more shards than samples.

    References
    ----------
    B. McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
    AISTATS 2017.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat(np.arange(4), 5)
    >>> parts = shards(labels, 2, np.random.default_rng(0))
    >>> [len(np.unique(labels[part])) for part in parts]
    [2, 2]
    """
    n = _check_classes(labels, num_clients)
    num_shards = num_clients * shards_per_client
    if num_shards > n:
        raise ValueError(
            f"{num_shards} shards need as many samples but there are {n}; "
            f"lower num-clients to at most {n // shards_per_client} or lower shards-per-client"
        )
    shuffled = rng.permutation(n)
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shard_owner = rng.permutation(np.repeat(np.arange(num_clients), shards_per_client))
    owner = np.empty(n, np.int64)
    owner[by_label] = np.repeat(shard_owner, _even(n, num_shards))
    return _collect(owner, num_clients)


def quantity_dirichlet(
    labels: Targets,
    num_clients: int,
    rng: np.random.Generator,
    *,
    dirichlet_alpha: Positive = 0.5,
    min_partition_size: PositiveInt = 10,
) -> list[Indices]:
    """Deal shuffled samples out in sizes drawn from a Dirichlet distribution (NIID-Bench's quantity skew).

    The sizes are those of the shuffled samples cut at the cumulative sums of
    ``q ~ Dir(dirichlet_alpha, ..., dirichlet_alpha)``. The draw is repeated until every client has its minimum.

    Parameters
    ----------
    dirichlet_alpha
        Concentration: a small value gives few clients nearly all samples, a large one gives equal sizes.
    min_partition_size
        Smallest number of samples of a client.

    Raises
    ------
    ValueError
        If the minimum is impossible, or not met by any of 1,000 draws.

    References
    ----------
    Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> parts = quantity_dirichlet(np.zeros(1000, int), 5, np.random.default_rng(0))
    >>> sum(map(len, parts)), min(map(len, parts)) >= 10
    (1000, True)
    """
    n = _check(labels, num_clients)

    def draw() -> NDArray[np.int64]:
        return _cut(rng.dirichlet(np.full(num_clients, dirichlet_alpha)), n)[None]

    counts = _draw_until(draw, n, num_clients, min_partition_size, dirichlet_alpha)
    return _deal(np.zeros(n, np.int64), counts, rng)


def feature_noise(
    labels: Targets, num_clients: int, rng: np.random.Generator, *, noise_std: NonNegative = 0.1
) -> list[Indices]:
    """Deal the samples out evenly; the noise of client i's features grows with i (NIID-Bench).

    The indices are those of ``iid``. ``add_feature_noise`` adds the noise.

    Parameters
    ----------
    noise_std
        Standard deviation of the last client's noise, in units of the normalised features.

    References
    ----------
    Q. Li et al., Federated Learning on Non-IID Data Silos: An Experimental Study, ICDE 2022.

    Examples
    --------
    >>> import numpy as np
    >>> [len(part) for part in feature_noise(np.zeros(10, int), 3, np.random.default_rng(0))]
    [4, 3, 3]
    """
    return iid(labels, num_clients, rng)


def natural(
    labels: Targets,
    num_clients: int,
    rng: np.random.Generator,
    *,
    groups: NDArray[np.int64] | None,
) -> list[Indices]:
    """Give each natural client of the data (writer, hospital, generated client) its own samples.

    Clients are in the order of their group numbers. The partition does not depend on the seed.

    Raises
    ------
    ValueError
        If the data has no groups, or if their number differs from ``num_clients``.

    Examples
    --------
    >>> import numpy as np
    >>> groups = np.array([7, 3, 7, 3])
    >>> [part.tolist() for part in natural(np.zeros(4), 2, np.random.default_rng(0), groups=groups)]
    [[1, 3], [0, 2]]
    """
    _check(labels, num_clients)
    if groups is None:
        raise ValueError(
            "partitioner natural needs data with natural clients, and this data has none; "
            "use another partitioner, such as iid, or name a group-column"
        )
    values, owner = np.unique(groups, return_inverse=True)
    if len(values) != num_clients:
        raise ValueError(
            f"the data has {len(values)} natural clients but num-clients = {num_clients}; "
            f"set num-clients = {len(values)}"
        )
    return _collect(owner, num_clients)


def add_feature_noise(
    x: Features, partition: Sequence[Indices], rng: np.random.Generator, *, noise_std: float = 0.1
) -> Features:
    """Return the features with Gaussian noise whose level grows with the client number.

    Client i of N gets noise of standard deviation ``noise_std * i / (N - 1)``, as in NIID-Bench's code; its paper
    gives a variance of ``noise_std * i / N``. The first client gets no noise.
    The noise is drawn once, so that a sample is the same in every round. The test set gets no noise.

    Parameters
    ----------
    x
        Training features ``(n, *shape)``; not changed.
    partition
        Indices of each client.
    rng
        Generator that draws the noise.
    noise_std
        Standard deviation of the last client's noise.

    Raises
    ------
    ValueError
        If the features are integers.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.zeros((4, 1), np.float32)
    >>> noisy = add_feature_noise(x, [np.array([0, 1]), np.array([2, 3])], np.random.default_rng(0))
    >>> (noisy != x).ravel().tolist()
    [False, False, True, True]
    """
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"partitioner feature-noise adds noise to numbers, and these features are {x.dtype}, such as tokens; take "
            "partitioner natural or iid"
        )
    noisy = x.copy()
    for client, indices in enumerate(partition):
        std = noise_std * client / max(1, len(partition) - 1)
        noise = rng.standard_normal((len(indices), *x.shape[1:]), np.float32)
        noisy[indices] += (std * noise).astype(x.dtype)
    return noisy


EFFECTS: Mapping[Callable[..., object], Callable[..., Features]] = {feature_noise: add_feature_noise}
"""Partitioners that also change the clients' features, and the function that does so."""
BY_LABEL: tuple[Callable[..., object], ...] = (
    *(label_dirichlet, client_dirichlet, client_dirichlet_sequential, labels_per_client, shards),
)
"""Partitioners that need the labels; the others only count them."""


def _check(labels: Targets, num_clients: int) -> int:
    """Return the number of samples; raise a ValueError if they are fewer than the clients."""
    n = len(labels)
    if num_clients < 1:
        raise ValueError(f"num-clients = {num_clients}; set it to at least 1")
    if num_clients > n:
        raise ValueError(
            f"{n} training samples are too few for {num_clients} clients; set num-clients to at most {n}"
        )
    return n


def _check_classes(labels: Targets, num_clients: int) -> int:
    """Do the same as `_check`, and raise a ValueError if the targets are not class labels."""
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            "a partitioner by label needs class labels and this data has regression targets; "
            "use partitioner iid, quantity-dirichlet, feature-noise or natural"
        )
    return _check(labels, num_clients)


def _draw_until(
    draw: Callable[[], NDArray[np.int64]], n: int, num_clients: int, minimum: int, alpha: float
) -> NDArray[np.int64]:
    """Return the first drawn counts, one row per class, that give each client at least ``minimum`` samples."""
    if num_clients * minimum > n:
        raise ValueError(
            f"{n} samples cannot give each of {num_clients} clients min-partition-size = {minimum}; set "
            f"min-partition-size to at most {n // num_clients} or num-clients to at most {n // minimum}"
        )
    best = 0
    for _ in range(_MAX_DRAWS):
        counts = draw()
        best = max(best, int(counts.sum(axis=0).min()))
        if best >= minimum:
            return counts
    lower = f"lower min-partition-size to {best}, " if best else ""
    raise ValueError(
        f"no draw of {_MAX_DRAWS} with dirichlet-alpha = {alpha:g} gave each of {num_clients} clients "
        f"min-partition-size = {minimum} samples (the best gave {best}); {lower}raise dirichlet-alpha "
        "or lower num-clients"
    )


def _even(n: int, parts: int) -> NDArray[np.int64]:
    """Return the sizes of ``parts`` parts of ``n`` samples; they differ by at most one, larger ones first."""
    return n // parts + (np.arange(parts) < n % parts).astype(np.int64)


def _cut(shares: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """Return the sizes of the parts of ``n`` samples cut at the cumulative shares."""
    ends = np.cumsum(shares)
    # Division makes the end of the last positive share exactly 1: rounding gives no sample to a zero share after it.
    ends /= ends[-1]
    return np.diff(np.floor(ends * n), prepend=0.0).astype(np.int64)


def _deal(labels: Targets, counts: NDArray[np.int64], rng: np.random.Generator) -> list[Indices]:
    """Give client i ``counts[k, i]`` random samples of class k; the remaining samples are left out."""
    num_classes, num_clients = counts.shape
    owner = np.full(len(labels), num_clients)
    shuffled = rng.permutation(len(labels))
    by_class = np.split(
        shuffled[np.argsort(labels[shuffled], kind="stable")],
        np.cumsum(np.bincount(labels, minlength=num_classes))[:-1],
    )
    for members, row in zip(by_class, counts, strict=True):
        owner[members[: row.sum()]] = np.repeat(np.arange(num_clients), row)
    return _collect(owner, num_clients)


def _collect(owner: NDArray[np.int64], num_clients: int) -> list[Indices]:
    """Return the sorted indices of each client; ``owner`` is each sample's client, or ``num_clients`` for none."""
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(num_clients + 1))
    parts = [order[start:end] for start, end in pairwise(ends)]
    assert all(len(part) for part in parts), "every client has a sample"
    return parts
