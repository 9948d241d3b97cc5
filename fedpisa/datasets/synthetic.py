"""Synthetic data with known heterogeneity; the quadratics also have a known solution."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from fedpisa.datasets.base import Dataset, Samples
from fedpisa.rng import generator
from fedpisa.typing import NonNegative, PositiveInt


def synthetic(
    *,
    seed: int,
    num_clients: int,
    synthetic_alpha: NonNegative = 1.0,
    synthetic_beta: NonNegative = 1.0,
    synthetic_iid: bool = False,
    size_log_mean: float = 4.0,
    size_log_std: NonNegative = 2.0,
    size_minimum: Annotated[int, Field(ge=2)] = 50,
) -> Dataset:
    """Synthetic(a, b) of FedProx and LEAF: each client has its own softmax model and its own inputs.

    For client k, with 60 features and 10 classes, ``u_k ~ N(0, a)``, ``B_k ~ N(0, b)``,
    ``W_k, b_k ~ N(u_k, 1)``, ``v_k ~ N(B_k, 1)``, ``x ~ N(v_k, diag(j^-1.2))`` and
    ``y = argmax(W_k x + b_k)``. As in the code of the published data sets, the second argument of
    ``N`` is the standard deviation. Each client's samples are split 80/20, and the test parts are pooled. The
    client is the sample's group: use the partitioner ``natural``. Features are not normalised.

    Parameters
    ----------
    synthetic_alpha
        a: how much the clients' models differ.
    synthetic_beta
        b: how much the clients' inputs differ.
    synthetic_iid
        Whether all clients have the same model and inputs around 0 (Synthetic-IID); a and b then have no effect.
    size_log_mean, size_log_std
        Clients' sizes are ``size_minimum + floor(lognormal(size_log_mean, size_log_std))``.
    size_minimum
        Smallest number of samples of a client, test part included; at least 2.

    References
    ----------
    T. Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, section 5.1.
    S. Caldas et al., LEAF: A Benchmark for Federated Settings, arXiv:1812.01097.

    Examples
    --------
    >>> data = synthetic(seed=0, num_clients=3, size_log_std=0.0)
    >>> data.shape, data.num_classes, set(data.groups.tolist())
    ((60,), 10, {0, 1, 2})
    """
    features, classes = 60, 10
    x_std = np.arange(1, features + 1) ** -0.6  # square root of the variances j^-1.2
    shared = generator(seed, "synthetic-iid")
    shared_weights = shared.normal(size=(features, classes)), shared.normal(size=classes)

    trains: list[Samples] = []
    tests: list[Samples] = []
    for client in range(num_clients):
        rng = generator(seed, "synthetic", client)
        size = size_minimum + int(rng.lognormal(size_log_mean, size_log_std))
        if synthetic_iid:
            centre, (weights, bias) = np.zeros(features), shared_weights
        else:
            model_mean, input_mean = rng.normal(0.0, synthetic_alpha), rng.normal(0.0, synthetic_beta)
            centre = rng.normal(input_mean, 1.0, features)
            weights = rng.normal(model_mean, 1.0, (features, classes))
            bias = rng.normal(model_mean, 1.0, classes)
        x = rng.normal(centre, x_std, (size, features))
        y = np.argmax(
            x @ weights + bias, axis=1
        )  # samples are i.i.d., so the first ones are a random test part
        cut = max(1, round(0.2 * size))
        tests.append((x[:cut], y[:cut]))
        trains.append((x[cut:], y[cut:]))
    train, test = (
        (np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts]))
        for parts in (trains, tests)
    )
    groups = np.repeat(np.arange(num_clients), [len(y) for _, y in trains])
    return Dataset.of("synthetic", train, test, num_classes=classes, groups=groups)


def quadratic(
    *,
    seed: int,
    num_clients: int,
    dimension: PositiveInt = 10,
    condition: Annotated[float, Field(ge=1)] = 10.0,
    optimum_spread: NonNegative = 1.0,
) -> Dataset:
    """Least squares of clients with different sizes and minimisers; the common optimum is known exactly.

    Client i has ``n_i = dimension * (1 + i mod 8)`` samples ``(a_j, b_j)`` and the loss
    ``f_i(w) = 1/(2 n_i) sum_j (a_j . w - b_j)^2 = 1/2 (w - w_i)' H_i (w - w_i)``. The eigenvalues of
    ``H_i = A_i' A_i / n_i`` run geometrically from ``L_i / condition`` to ``L_i``, with random eigenvectors and
    ``L_i`` log-uniform in [1/2, 2]. The minimiser is ``w_i ~ N(c, optimum_spread^2 I)`` around a common
    ``c ~ N(0, I)``. The test set is the training set. All arrays are float64 and not normalised. The model is
    linear without bias; use the partitioner ``natural``.

    ``ground_truth`` holds ``optimum`` ``(d,)``, which minimises ``F = sum_i (n_i/n) f_i``, and its value
    ``optimal-loss``; ``client-optima`` ``(N, d)``; ``lipschitz`` and ``strong-convexity`` ``(N,)``, the largest and
    smallest eigenvalue of every ``H_i``.

    Parameters
    ----------
    dimension
        Number of parameters d.
    condition
        Condition number of every client's loss.
    optimum_spread
        Standard deviation of the clients' minimisers; with 0 all clients have the same minimiser.

    Examples
    --------
    >>> data = quadratic(seed=0, num_clients=3)
    >>> data.x_train.shape, data.num_classes, bool(data.ground_truth["optimal-loss"] > 0)
    ((60, 10), None, True)
    """
    shared = generator(seed, "quadratic")
    centre = shared.normal(size=dimension)
    spectrum = np.geomspace(1.0 / condition, 1.0, dimension) if dimension > 1 else np.ones(1)

    inputs, targets, optima, lipschitz = [], [], [], []
    for client in range(num_clients):
        rng = generator(seed, "quadratic", client)
        size = dimension * (1 + client % 8)
        largest = 2.0 ** rng.uniform(-1.0, 1.0)
        rotation = np.linalg.qr(rng.normal(size=(dimension, dimension)))[0]
        basis = np.linalg.qr(rng.normal(size=(size, dimension)))[0]
        a = np.sqrt(size * largest) * (basis * np.sqrt(spectrum)) @ rotation.T
        optimum = centre + optimum_spread * rng.normal(size=dimension)
        inputs.append(a)
        targets.append(a @ optimum)
        optima.append(optimum)
        lipschitz.append(largest)

    x, y = np.concatenate(inputs), np.concatenate(targets)
    best = np.linalg.lstsq(x, y, rcond=None)[0]
    return Dataset.of(
        "quadratic",
        (x, y),
        (x, y),
        num_classes=None,
        groups=np.repeat(np.arange(num_clients), [len(b) for b in targets]),
        default_model="linear",
        ground_truth={
            "optimum": best,
            "optimal-loss": float(0.5 * np.mean((x @ best - y) ** 2)),
            "client-optima": np.array(optima),
            "lipschitz": np.array(lipschitz),
            "strong-convexity": np.array(lipschitz) * spectrum[0],
        },
    )
