"""PISA finds the optimum of logistic regression with one label per client; FedAvg ends elsewhere."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedpisa.config.run import RunConfig
from fedpisa.simulation.parts import load_dataset

LEAST = 0.3333407520687
LAMBDA = 1e-3
RATE = 0.5


@pytest.fixture
def setting(a9a_dir: Path) -> dict[str, object]:
    """Four clients with one label each, full batches, no bias; the weights start at zero."""
    return {
        "dataset": "a9a", "data-dir": str(a9a_dir), "model": "logistic", "bias": False, "dtype": "float64",
        "num-clients": 4, "partitioner": "labels-per-client", "labels-per-client": 1, "batch-size": "full",
        "exact-diagnostics": True, "eval-every": 1000,
    }  # fmt: skip


@pytest.fixture
def clients(lab: Any, setting: dict[str, object]) -> list[Any]:
    found: list[Any] = lab.clients_of(setting)
    return found


def objective(clients: list[Any], w: np.ndarray) -> float:
    """Return ``F(w)`` with the regulariser."""
    n = sum(client.size for client in clients)
    return sum(client.size / n * client.value(w) for client in clients) + LAMBDA / 2 * float(w @ w)


def optimum_of(clients: list[Any]) -> np.ndarray:
    """Return the minimiser of ``F``, by Newton's method."""
    pooled = reduce(lambda a, b: type(a)(np.vstack([a.x, b.x]), np.append(a.y, b.y), a.loss), clients)
    w = np.zeros(pooled.x.shape[1])
    for _ in range(20):
        gradient = pooled.gradient(w) + LAMBDA * w
        if np.linalg.norm(gradient) <= 1e-15:
            return w
        w = w - np.linalg.solve(pooled.hessian(w) + LAMBDA * np.eye(len(w)), gradient)
    raise AssertionError("Newton's method did not converge")


def fedavg_round(clients: list[Any], w: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of the clients' models after local gradient steps, and its derivative by ``w``."""
    n = sum(client.size for client in clients)
    mean, slope = np.zeros_like(w), np.zeros((len(w), len(w)))
    for client in clients:
        v, dv = w, np.eye(len(w))
        for _ in range(steps):
            dv = dv - RATE * (client.hessian(v) @ dv + LAMBDA * dv)
            v = v - RATE * (client.gradient(v) + LAMBDA * v)
        mean, slope = mean + client.size / n * v, slope + client.size / n * dv
    return mean, slope


def test_the_optimum(lab: Any, setting: dict[str, object], clients: list[Any]) -> None:
    assert [sorted(set(client.y.tolist())) for client in clients] == [[0], [1], [0], [1]]
    w = optimum_of(clients)
    assert objective(clients, w) == pytest.approx(LEAST, abs=5e-14)
    data = load_dataset(RunConfig.from_mapping(setting))
    assert round(float(np.mean((data.x_test @ w > 0) == data.y_test)), 5) == 0.85118
    # FedSGD started at the optimum reports the same values.
    at = lab.trace({**setting, "algorithm": "fedsgd", "mu": LAMBDA, "num-server-rounds": 1}, w).rows[-1]
    assert at["objective"] == pytest.approx(LEAST, abs=5e-14)
    assert at["gradient_norm"] <= 1e-14
    assert round(at["test_accuracy"], 5) == 0.85118


@pytest.mark.slow
def test_pisa_is_at_the_optimum_after_300_rounds(lab: Any, setting: dict[str, object]) -> None:
    got = lab.trace(
        {
            **setting, "algorithm": "pisa", "sigma": 0.1, "rho": 5.0, "gamma": 1.0, "lambda": LAMBDA,
            "num-server-rounds": 300,
        }
    ).rows[-1]  # fmt: skip
    assert 0 <= got["objective"] - LEAST <= 1e-5
    assert got["test_accuracy"] == pytest.approx(0.85118, abs=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "above"), [(5, 2.5e-2), (20, 9.8e-2)])
def test_fedavg_stays_away_from_it(
    lab: Any, setting: dict[str, object], clients: list[Any], steps: int, above: float
) -> None:
    """FedAvg converges to the fixed point that Newton's method finds, away from the optimum.

    Both minimise the same objective (``weight-decay`` is ``lambda``). At the fixed point the derivative's
    spectral radius is below 1, so FedAvg converges to it and stays there.
    """
    w = np.zeros(clients[0].x.shape[1])
    for _ in range(20):
        mean, slope = fedavg_round(clients, w, steps)
        step = np.linalg.solve(np.eye(len(w)) - slope, mean - w)
        w = w + step
        if np.linalg.norm(step) <= 1e-11:
            break
    assert np.linalg.norm(step) <= 1e-11
    assert np.abs(np.linalg.eigvals(slope)).max() < 1
    assert objective(clients, w) - LEAST == pytest.approx(above, rel=0.02)

    values = {
        **setting, "algorithm": "fedavg", "local-steps": steps, "learning-rate": RATE,
        "weight-decay": LAMBDA, "num-server-rounds": 3,
    }  # fmt: skip
    stays = lab.trace(values, w)
    assert max(lab.relative(params, w) for params in stays.params) <= 1e-11
    assert stays.rows[-1]["objective"] == pytest.approx(objective(clients, w), abs=1e-13)

    from_zero = lab.trace(values)
    w = np.zeros_like(w)
    for params in from_zero.params[1:]:
        w, _ = fedavg_round(clients, w, steps)
        assert lab.relative(params, w) <= 1e-12
