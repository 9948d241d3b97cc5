"""Where PISA and FedAvg end on clients' quadratics with known optimum and curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedpisa.config.run import RunConfig
from fedpisa.simulation.parts import load_dataset

SCHEMES = ("identity", "adagrad", "rmsprop", "adam")


def curvature(lab: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the clients' Hessians ``H_i``, minimisers ``w_i*`` and weights ``n_i / n``."""
    clients = lab.clients_of(lab.QUADRATIC)
    hessians = np.array([client.hessian(np.zeros(6)) for client in clients])
    ground_truth = load_dataset(RunConfig.from_mapping(lab.QUADRATIC)).ground_truth
    return hessians, ground_truth["client-optima"], lab.by_samples(clients)


def test_the_dataset_says_the_truth(lab: Any) -> None:
    """``ground_truth`` agrees with Hessians and gradients computed from the samples."""
    hessians, optima, alpha = curvature(lab)
    ground_truth = load_dataset(RunConfig.from_mapping(lab.QUADRATIC)).ground_truth
    wanted = np.linalg.solve(
        np.einsum("n,nij->ij", alpha, hessians), np.einsum("n,nij,nj->i", alpha, hessians, optima)
    )
    assert lab.relative(ground_truth["optimum"], wanted) <= 1e-13
    eigenvalues = np.linalg.eigvalsh(hessians)
    assert eigenvalues[:, -1] == pytest.approx(ground_truth["lipschitz"], rel=1e-12)
    assert eigenvalues[:, 0] == pytest.approx(ground_truth["strong-convexity"], rel=1e-12)
    clients = lab.clients_of(lab.QUADRATIC)
    assert max(np.abs(c.gradient(w)).max() for c, w in zip(clients, optima, strict=True)) <= 1e-14
    loss = sum(a * client.value(wanted) for a, client in zip(alpha, clients, strict=True))
    assert ground_truth["optimal-loss"] == pytest.approx(loss, rel=1e-13)
    assert len({client.size for client in clients}) == 5


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_pisa_reaches_the_optimum(lab: Any, scheme: str, local_steps: int) -> None:
    """At the end ``w = w_i = w*`` and ``pi_i = -grad f_i(w*)``, which sum to zero.

    No client is at its own optimum there.
    """
    hessians, optima, alpha = curvature(lab)
    optimum = load_dataset(RunConfig.from_mapping(lab.QUADRATIC)).ground_truth["optimum"]
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": "pisa", "preconditioner": scheme, "local-steps": local_steps,
            "sigma": 2.0, "rho": 0.5, "num-server-rounds": 400, "eval-every": 400,
        }
    )  # fmt: skip
    assert lab.relative(got.params[-1], optimum) <= 1e-8
    duals = -np.einsum("nij,nj->ni", hessians, optimum - optima)
    assert np.abs(duals).max() > 0.1
    assert lab.relative(got.duals[-1], duals) <= 1e-8
    assert np.linalg.norm(alpha @ got.duals[-1]) <= 1e-8
    assert got.rows[-1]["stationarity"] <= 1e-8
    assert got.rows[-1]["primal_residual"] <= 1e-8
    assert got.rows[-1]["dual_residual"] <= 1e-8


@pytest.mark.parametrize("scheme", SCHEMES)
def test_pisa_reaches_the_regularised_optimum(lab: Any, scheme: str) -> None:
    """``lambda`` and ``mu`` regularise the objective alike, and ``sum alpha_i pi_i = lambda w*``."""
    lambda_, mu = 0.3, 0.1
    hessians, optima, alpha = curvature(lab)
    pooled = np.einsum("n,nij->ij", alpha, hessians) + (lambda_ + mu) * np.eye(6)
    optimum = np.linalg.solve(pooled, np.einsum("n,nij,nj->i", alpha, hessians, optima))
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": "pisa", "preconditioner": scheme, "lambda": lambda_, "mu": mu,
            "sigma": 2.0, "rho": 0.5, "num-server-rounds": 300, "eval-every": 300, "exact-diagnostics": True,
        }
    )  # fmt: skip
    assert lab.relative(got.params[-1], optimum) <= 1e-8
    assert lab.relative(alpha @ got.duals[-1], lambda_ * optimum) <= 1e-8
    assert got.rows[-1]["stationarity"] <= 1e-8
    assert got.rows[-1]["gradient_norm"] <= 1e-8


def test_with_some_clients_absent_keep_reaches_the_optimum_and_drop_does_not(lab: Any) -> None:
    optimum = load_dataset(RunConfig.from_mapping(lab.QUADRATIC)).ground_truth["optimum"]
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 4.0, "rho": 4.0, "fraction-train": 0.6,
        "num-server-rounds": 600, "eval-every": 600,
    }  # fmt: skip
    error = {
        absent: lab.relative(lab.trace({**values, "absent": absent}).params[-1], optimum)
        for absent in ("keep", "drop")
    }
    assert error["keep"] <= 1e-8
    assert error["drop"] >= 1e-3


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("algorithm", ["fedavg", "localsgd"])
def test_where_fedavg_ends(lab: Any, algorithm: str, steps: int) -> None:
    """FedAvg ends at the fixed point of the clients' mean of K gradient steps.

    K steps are ``w_i* + (I - h H_i)^K (w - w_i*)``. With one step the fixed point is the optimum. With more
    steps it is not.
    """
    rate = 0.4
    hessians, optima, alpha = curvature(lab)
    if algorithm == "localsgd":
        alpha = np.full(5, 0.2)
    left = np.array([np.linalg.matrix_power(np.eye(6) - rate * h, steps) for h in hessians])
    mean = np.einsum("n,nij->ij", alpha, left)
    end = np.linalg.solve(np.eye(6) - mean, np.einsum("n,nij,nj->i", alpha, np.eye(6) - left, optima))
    assert np.abs(np.linalg.eigvalsh(mean)).max() < 1  # the iteration converges from every start
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": algorithm, "local-steps": steps, "learning-rate": rate,
            "num-server-rounds": 400 // steps, "eval-every": 400,
        }
    )  # fmt: skip
    assert lab.relative(got.params[-1], end) <= 1e-9

    pooled = np.einsum("n,nij->ij", alpha, hessians)
    optimum = np.linalg.solve(pooled, np.einsum("n,nij,nj->i", alpha, hessians, optima))
    bias = lab.relative(end, optimum)
    assert bias <= 1e-12 if steps == 1 else bias >= 0.01
