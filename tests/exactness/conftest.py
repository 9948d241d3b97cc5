"""Helpers of the exactness tests: clients as arrays, PISA in NumPy, and traces of runs by round."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fedpisa.config.run import RunConfig
from fedpisa.flower.compat import to_record
from fedpisa.runs.runner import Simulation
from fedpisa.simulation.parts import load_dataset, split_dataset

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Client:
    """A client's samples, and its mean loss with first and second derivatives.

    ``loss`` is ``"squares"`` (halved), ``"binary"`` (one logit) or ``"softmax"`` (the parameters are the
    rows of a matrix, one per class, one after the other).
    """

    x: Vector
    y: NDArray[Any]
    loss: str

    @property
    def size(self) -> int:
        return len(self.y)

    def value(self, w: Vector) -> float:
        if self.loss == "squares":
            return float(0.5 * np.mean((self.x @ w - self.y) ** 2))
        if self.loss == "binary":
            margin = self.x @ w
            return float(np.mean(np.logaddexp(0, margin) - self.y * margin))
        logits = self.x @ w.reshape(-1, self.x.shape[1]).T
        chosen = logits[np.arange(self.size), self.y]
        return float(np.mean(np.logaddexp.reduce(logits, axis=1) - chosen))

    def gradient(self, w: Vector) -> Vector:
        if self.loss == "squares":
            return self.x.T @ (self.x @ w - self.y) / self.size
        if self.loss == "binary":
            return self.x.T @ (self.probability(w) - self.y) / self.size
        logits = self.x @ w.reshape(-1, self.x.shape[1]).T
        share = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
        share[np.arange(self.size), self.y] -= 1
        return (share.T @ self.x / self.size).ravel()

    def hessian(self, w: Vector) -> Vector:
        """Return the Hessian; only for losses with one output."""
        p = self.probability(w) if self.loss == "binary" else None
        weight = np.ones(self.size) if p is None else p * (1 - p)
        return (self.x * weight[:, None]).T @ self.x / self.size

    def probability(self, w: Vector) -> Vector:
        return 1 / (1 + np.exp(-self.x @ w))


def clients_of(values: Mapping[str, object]) -> list[Client]:
    """Return the clients of a configuration as plain float64 arrays."""
    config = RunConfig.from_mapping(values)
    dataset, partition = split_dataset(config, load_dataset(config))
    loss = {None: "squares", 2: "binary"}.get(dataset.num_classes, "softmax")
    x = dataset.x_train.reshape(len(dataset.x_train), -1).astype(np.float64)
    return [Client(x[rows], dataset.y_train[rows], loss) for rows in partition]


def by_samples(clients: Sequence[Client]) -> Vector:
    """Return the weights ``n_i / n``."""
    sizes = np.array([client.size for client in clients], dtype=float)
    return sizes / sizes.sum()


@dataclass(frozen=True)
class Iterate:
    """PISA after ``l`` rounds: the last broadcast, the clients' models and duals, and the next broadcast."""

    w: Vector
    """The last broadcast, ``w^l``."""
    local: Vector
    """``w_i^l``, one row per client."""
    dual: Vector
    """``pi_i^l``, one row per client."""
    sigma: float
    after: Vector
    """``w^{l+1}`` of (2.9)."""


def pisa(
    gradients: Sequence[Callable[[Vector], Vector]],
    weights: Vector,
    start: Vector,
    *,
    sigma: float,
    rho: float,
    lambda_: float = 0.0,
    mu: float = 0.0,
    gamma: float = 1.0,
    gamma_every: int = 1,
    local_steps: int = 1,
    scheme: str = "identity",
    beta: float = 0.999,
    eps: float = 1e-8,
    eta: float = inf,
    bias_correction: str = "adam",
    amsgrad: bool = False,
) -> Iterator[Iterate]:
    """Yield the iterates of Algorithm 1, as the paper writes it, on full batches; the weights sum to 1."""
    local = np.tile(start, (len(gradients), 1))
    dual, moment, largest = np.zeros_like(local), np.zeros_like(local), np.zeros_like(local)
    w, updates, rounds = weights @ (sigma * local + dual) / (sigma + lambda_), 0, 0
    while True:
        if rounds % gamma_every == 0:
            sigma = sigma / gamma
        for i, gradient in enumerate(gradients):
            v = w
            for k in range(local_steps):
                q = dual[i] + gradient(v) + mu * v
                if scheme == "identity":
                    scale: Any = min(1.0, eta)
                else:
                    keep, take = (1.0, 1.0) if scheme == "adagrad" else (beta, 1 - beta)
                    moment[i] = keep * moment[i] + take * q**2
                    power = 1 if bias_correction == "constant" else updates + k + 1
                    bias = 1 - beta**power if scheme == "adam" else 1.0
                    largest[i] = np.maximum(largest[i], moment[i] / bias) if amsgrad else moment[i] / bias
                    scale = np.sqrt(np.minimum(largest[i], eta**2)) + eps
                v = v - (q + sigma * (v - w)) / (sigma + rho * scale)
            local[i] = v
        updates += local_steps
        dual = dual + sigma * (local - w)
        rounds += 1
        after = weights @ (sigma * local + dual) / (sigma + lambda_)
        yield Iterate(w, local.copy(), dual, sigma, after)
        w = after


@dataclass
class Trace:
    """A run of fedpisa, recorded after every round; index 0 is before the first."""

    config: RunConfig
    params: list[Vector] = field(default_factory=list)
    rows: list[Mapping[str, Any]] = field(default_factory=list)
    duals: list[Vector] = field(default_factory=list)

    def column(self, name: str) -> Vector:
        """Return a column over the rounds 1, 2, ..."""
        return np.array([row[name] for row in self.rows[1:]])


def trace(values: Mapping[str, object], start: Vector | None = None) -> Trace:
    """Run a configuration in float64, from the model ``start`` if it is given."""
    simulation = Simulation(RunConfig.from_mapping({"dtype": "float64", **values}))
    if start is not None:
        model = to_record({"params": torch.from_numpy(np.array(start, dtype=np.float64))})
        simulation.model = simulation.strategy.start_from(model)
    seen = Trace(simulation.config)
    for row in simulation.rows():
        seen.rows.append(row)
        seen.params.append(np.concatenate([part.ravel() for part in simulation.parameters().values()]))
        states = [simulation.grid.state(i) or {} for i in range(simulation.config.num_clients)]
        seen.duals.append(np.array([state["dual"].numpy().copy() for state in states if "dual" in state]))
    return seen


def relative(got: Vector, wanted: Vector) -> float:
    """Return ``||got - wanted|| / ||wanted||``."""
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


QUADRATIC = {
    "dataset": "quadratic",
    "partitioner": "natural",
    "num-clients": 5,
    "dimension": 6,
    "condition": 3.0,
    "batch-size": "full",
}
SOFTMAX = {
    "dataset": "digits",
    "model": "logistic",
    "bias": False,
    "partitioner": "label-dirichlet",
    "dirichlet-alpha": 0.1,
    "num-clients": 4,
    "batch-size": "full",
}


@pytest.fixture
def lab() -> SimpleNamespace:
    """Return the helpers of this module."""
    return SimpleNamespace(
        Client=Client,
        QUADRATIC=QUADRATIC,
        SOFTMAX=SOFTMAX,
        by_samples=by_samples,
        clients_of=clients_of,
        pisa=pisa,
        relative=relative,
        trace=trace,
    )


@pytest.fixture
def a9a_dir() -> Path:
    """Return the folder that holds a9a and a9a.t, or skip the test."""
    given = os.environ.get("FEDPISA_DATA")
    folders = [Path(given)] if given else []
    folders.append(Path(__file__).parents[3] / "shared" / "data")
    for folder in folders:
        if (folder / "a9a").is_file() and (folder / "a9a.t").is_file():
            return folder
    pytest.skip("a9a and a9a.t are neither in FEDPISA_DATA nor in ../shared/data")
