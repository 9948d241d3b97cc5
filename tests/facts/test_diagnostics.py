"""The columns of ``metrics.jsonl`` against the same quantities computed apart, and the descent that they show."""

from __future__ import annotations

from itertools import islice, pairwise
from math import sqrt
from typing import Any

import numpy as np
import pytest

from fedpisa.config import RunConfig
from fedpisa.runner import Simulation

ROUNDS = 12


def lagrangian(
    clients: list[Any], alpha: np.ndarray, w: np.ndarray, local: np.ndarray, dual: np.ndarray,
    sigma: float, lambda_: float = 0.0, mu: float = 0.0,
) -> float:  # fmt: skip
    """Return (2.6)."""
    total = lambda_ / 2 * w @ w
    for client, a, v, pi in zip(clients, alpha, local, dual, strict=True):
        total += a * (client.value(v) + mu / 2 * v @ v + pi @ (v - w) + sigma / 2 * (v - w) @ (v - w))
    return float(total)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("weighting", ["num-examples", "uniform"])
@pytest.mark.parametrize("name", ["quadratic", "softmax"])
def test_every_column(lab: Any, name: str, weighting: str, engine: str) -> None:
    lambda_, mu = 0.2, 0.1
    problem = {"quadratic": lab.QUADRATIC, "softmax": lab.SOFTMAX}[name]
    values = {
        **problem, "algorithm": "pisa", "sigma": 2.0, "rho": 3.0, "lambda": lambda_, "mu": mu,
        "gamma": 0.9, "gamma-every": 3, "weighting": weighting, "engine": engine,
        "num-server-rounds": ROUNDS, "exact-diagnostics": True,
    }  # fmt: skip
    clients = lab.clients_of(values)
    sizes = lab.by_samples(clients)
    alpha = sizes if weighting == "num-examples" else np.full(len(clients), 1 / len(clients))
    start = np.random.default_rng(0).normal(size=clients[0].x.shape[1] * (10 if name == "softmax" else 1))
    got = lab.trace(values, start)
    reference = lab.pisa(
        [client.gradient for client in clients], alpha, start, sigma=2.0, rho=3.0, lambda_=lambda_, mu=mu,
        gamma=0.9, gamma_every=3,
    )  # fmt: skip
    for row, wanted in zip(got.rows[1:], islice(reference, ROUNDS), strict=True):
        drift, after, sigma = wanted.local - wanted.w, wanted.after, wanted.sigma

        def close(column: str, value: float, row: Any = row) -> None:
            assert row[column] == pytest.approx(value, rel=1e-11, abs=1e-12), column

        close("sigma", sigma)
        close("train_loss", sum(a * c.value(wanted.w) for a, c in zip(alpha, clients, strict=True)))
        close("primal_residual", sqrt(alpha @ (drift**2).sum(1)))
        close("dual_residual", sigma * np.linalg.norm(after - wanted.w))
        close("stationarity", float(np.linalg.norm(alpha @ wanted.dual - lambda_ * after)))
        value = sum(a * client.value(after) for a, client in zip(alpha, clients, strict=True))
        close("objective", value + (lambda_ + mu) / 2 * after @ after)
        gradient = sum(a * client.gradient(after) for a, client in zip(alpha, clients, strict=True))
        close("gradient_norm", float(np.linalg.norm(gradient + (lambda_ + mu) * after)))
        common = {"sigma": sigma, "lambda_": lambda_, "mu": mu}
        exact = lagrangian(clients, alpha, after, wanted.local, wanted.dual, **common)
        close("exact_augmented_lagrangian", exact)
        # The estimate is (2.6) at the point that was broadcast, with F_i(w_i) to first order.
        there = lagrangian(clients, alpha, wanted.w, wanted.local, wanted.dual, **common)
        missing = sum(
            a * (c.value(v) - c.value(wanted.w) - c.gradient(wanted.w) @ d + mu / 2 * d @ d)
            for a, c, v, d in zip(alpha, clients, wanted.local, drift, strict=True)
        )
        close("augmented_lagrangian", there - missing)


def test_the_estimated_lagrangian_is_off_by_second_order(lab: Any) -> None:
    """Near consensus it is the exact one: the difference is between 0 and ``L/2`` times the squared residual."""
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 4.0, "rho": 4.0, "lambda": 0.2,
        "num-server-rounds": 60, "exact-diagnostics": True,
    }  # fmt: skip
    got = lab.trace(values)
    curvature = max(np.linalg.eigvalsh(client.hessian(np.zeros(6)))[-1] for client in lab.clients_of(values))
    # (2.6) is quadratic in w with its minimum at the next broadcast.
    exact = got.column("exact_augmented_lagrangian") + 4.2 / 2 * (got.column("dual_residual") / 4.0) ** 2
    difference = exact - got.column("augmented_lagrangian")
    squared = got.column("primal_residual") ** 2
    assert (difference >= -1e-15).all()
    assert (difference <= curvature / 2 * squared + 1e-15).all()
    assert squared[-1] < 1e-6 * squared[0]


def test_the_gradient_norm_is_that_of_the_objective(lab: Any) -> None:
    """Two columns of different code: finite differences of ``objective`` along the gradient."""
    values = {
        **lab.SOFTMAX, "algorithm": "pisa", "lambda": 0.2, "mu": 0.1, "num-server-rounds": 1,
        "exact-diagnostics": True, "sigma": 1e9, "rho": 0.0,
    }  # fmt: skip
    clients = lab.clients_of(values)
    point = np.random.default_rng(0).normal(size=640)
    direction = sum(a * c.gradient(point) for a, c in zip(lab.by_samples(clients), clients, strict=True))
    direction = (direction + 0.3 * point) / np.linalg.norm(direction + 0.3 * point)
    # So stiff a penalty leaves the model where it is.
    at = {h: lab.trace(values, point + h * direction).rows[-1] for h in (-1e-4, 0.0, 1e-4)}
    slope = (at[1e-4]["objective"] - at[-1e-4]["objective"]) / 2e-4
    assert slope == pytest.approx(at[0.0]["gradient_norm"], rel=1e-6)


def test_absent_clients_in_the_exact_lagrangian(lab: Any) -> None:
    """A kept client counts with its last ``w_i, pi_i, sigma_i``, one never seen with ``w_i = w``, ``pi_i = 0``."""
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 2.0, "rho": 2.0, "lambda": 0.2, "gamma": 0.8,
        "fraction-train": 0.4, "num-server-rounds": 4, "exact-diagnostics": True,
    }  # fmt: skip
    clients = lab.clients_of(values)
    alpha = lab.by_samples(clients)
    simulation = Simulation(RunConfig.from_mapping({"dtype": "float64", **values}))
    local, dual, sigma = {}, {}, {}
    w = np.zeros(6)
    seen_by_round = []
    for row in simulation.rows():
        after = simulation.model["params"].numpy()
        if row["round"]:
            for i, state in enumerate(simulation.grid.state(i) for i in range(5)):
                if state is None or (i in dual and np.array_equal(state["dual"].numpy(), dual[i])):
                    continue
                before = dual.get(i, np.zeros(6))
                dual[i], sigma[i] = state["dual"].numpy().copy(), row["sigma"]
                local[i] = w + (dual[i] - before) / sigma[i]
            total = 0.1 * after @ after
            for i, (a, client) in enumerate(zip(alpha, clients, strict=True)):
                v, pi = local.get(i, after), dual.get(i, np.zeros(6))
                d = v - after
                total += a * (client.value(v) + pi @ d + sigma.get(i, 0.0) / 2 * d @ d)
            assert row["exact_augmented_lagrangian"] == pytest.approx(total, rel=1e-12)
            seen_by_round.append(len(dual))
        w = after.copy()
    assert seen_by_round[0] == 2
    assert seen_by_round[-1] > 2


# ------------------------------------------------------------------------------------------- descent


@pytest.mark.parametrize("theta", [0.0, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("regularised", [False, True])
def test_the_merit_function_never_increases(lab: Any, theta: float, regularised: bool) -> None:
    r"""Full batches, ``Q = I``, ``rho = theta sigma`` and ``sigma`` large enough for the clients' curvature ``r``.

    Let ``P^l = sum alpha_i ||pi_i^l - pi_i^{l-1}||^2`` and ``C = 1 + theta^2/2 + r/(2 sigma)``.
    (2.13) and (2.14) give ``(1 + theta) Delta pi_i^{l+1} = theta Delta pi_i^l - Delta g_i``, so
    ``P^{l+1} <= theta/(1+theta) P^l + r^2/(1+theta) ||w^{l+1} - w^l||^2``. The step in w lowers (2.6) by
    ``(sigma + lambda)/2 ||w^{l+1} - w^l||^2``; the clients' steps raise it by no more than ``C/sigma P^{l+1}``.
    Hence ``M = L + C theta/sigma P`` falls by ``((sigma + lambda)/2 - C r^2/sigma) ||w^{l+1} - w^l||^2`` at
    least, as soon as ``sigma (sigma + lambda) >= 2 C r^2``.
    """
    lambda_, mu = (0.3, 0.1) if regularised else (0.0, 0.0)
    clients = lab.clients_of(lab.QUADRATIC)
    r = mu + max(np.linalg.eigvalsh(client.hessian(np.zeros(6)))[-1] for client in clients)
    sigma = r * max(2.0, 1.1 * sqrt(2 + theta**2 + 0.5))
    bound = 1 + theta**2 / 2 + r / (2 * sigma)
    assert sigma * (sigma + lambda_) >= 2 * bound * r**2
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": "pisa", "sigma": sigma, "rho": theta * sigma,
            "lambda": lambda_, "mu": mu, "num-server-rounds": 400, "exact-diagnostics": True,
        },
        10 * np.random.default_rng(0).normal(size=6),
    )  # fmt: skip
    moved = (got.column("dual_residual") / sigma) ** 2
    # The column is taken after the step in w; (2.6) is quadratic in w with its minimum there.
    value = got.column("exact_augmented_lagrangian") + (sigma + lambda_) / 2 * moved
    merit = value + bound * theta / sigma * (sigma * got.column("primal_residual")) ** 2
    falls = ((sigma + lambda_) / 2 - bound * r**2 / sigma) * moved[:-1]
    rounding = 1e-14 * abs(merit[0])
    assert (np.diff(merit) <= -falls + rounding).all()
    # It falls to the least value of the objective, from far above.
    pooled = sum(a * c.hessian(np.zeros(6)) for a, c in zip(lab.by_samples(clients), clients, strict=True))
    force = -sum(a * c.gradient(np.zeros(6)) for a, c in zip(lab.by_samples(clients), clients, strict=True))
    optimum = np.linalg.solve(pooled + (lambda_ + mu) * np.eye(6), force)
    least = sum(a * c.value(optimum) for a, c in zip(lab.by_samples(clients), clients, strict=True))
    least += (lambda_ + mu) / 2 * optimum @ optimum
    assert merit[0] > 10 * least
    assert merit[-1] == pytest.approx(least, rel=1e-10)


def test_the_lagrangian_rises_where_sigma_is_too_small(lab: Any) -> None:
    """The test above can fail: a penalty well below the curvature does not converge."""
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 0.5, "rho": 0.0, "num-server-rounds": 20,
        "exact-diagnostics": True,
    }  # fmt: skip
    value = lab.trace(values).column("exact_augmented_lagrangian")
    assert any(later > earlier for earlier, later in pairwise(value))
