"""The columns of ``metrics.jsonl`` equal independently computed values, and show the proven descent."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice, pairwise
from math import sqrt
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

from fedpisa.clients.base import MiniBatches
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adam, Identity, NewtonSchulz, Preconditioner
from fedpisa.config.run import RunConfig
from fedpisa.runs.runner import Simulation
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout

ROUNDS = 12


def lagrangian(
    clients: list[Any], alpha: np.ndarray, w: np.ndarray, local: np.ndarray, dual: np.ndarray,
    sigma: float, lambda_: float = 0.0, mu: float = 0.0,
) -> float:  # fmt: skip
    """Return the augmented Lagrangian (2.6)."""
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
    """The exact value exceeds the estimate by at most ``L/2`` times the squared primal residual."""
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
    """``gradient_norm`` equals a finite difference of ``objective`` along the gradient."""
    values = {
        **lab.SOFTMAX, "algorithm": "pisa", "lambda": 0.2, "mu": 0.1, "num-server-rounds": 1,
        "exact-diagnostics": True, "sigma": 1e9, "rho": 0.0,
    }  # fmt: skip
    clients = lab.clients_of(values)
    point = np.random.default_rng(0).normal(size=640)
    direction = sum(a * c.gradient(point) for a, c in zip(lab.by_samples(clients), clients, strict=True))
    direction = (direction + 0.3 * point) / np.linalg.norm(direction + 0.3 * point)
    # The penalty is so stiff that the model does not move.
    at = {h: lab.trace(values, point + h * direction).rows[-1] for h in (-1e-4, 0.0, 1e-4)}
    slope = (at[1e-4]["objective"] - at[-1e-4]["objective"]) / 2e-4
    assert slope == pytest.approx(at[0.0]["gradient_norm"], rel=1e-6)


def test_absent_clients_in_the_exact_lagrangian(lab: Any) -> None:
    """An absent client that is kept counts with its last ``w_i, pi_i, sigma_i``.

    A client that was never sampled counts with ``w_i = w``, ``pi_i = 0``.
    """
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
#
# The paper's Lemma 3.2 and (3.10), whose constants its public text does not show, say that full-batch PISA lowers a
# merit function if sigma is large enough for the clients' Lipschitz constant. The bounds are derived here.
#
# w is a round's broadcast, sigma its penalty, d_i = w_i - w, g_i = grad F_i(w); a prime marks the next round.
# All F_i have gradients with Lipschitz constant r, 0 <= Q_i <= eta I, theta = rho eta / sigma at first. Sums over
# clients are weighted by alpha_i. P = sum ||pi_i - pi_i^before||^2 = sigma^2 sum ||d_i||^2 by (2.14), and
# M = L + (kappa/sigma) P with L of (2.6) at (w, w_i, pi_i, sigma), that is before the next step in w.
#
# 1. The step in w is exact and L is (sigma + lambda)-convex in w: L falls by (sigma + lambda)/2 ||w' - w||^2.
# 2. sigma' = sigma/gamma adds (sigma' - sigma)/2 sum ||w_i - w'||^2 <= (1/gamma - 1)(P/sigma + sigma ||w' - w||^2).
# 3. The clients. (2.13) is g'_i + pi_i = -(sigma' + rho Q'_i) d'_i. With e_i = w_i - w', F_i(w'_i) <= F_i(w') +
#    <g'_i, d'_i> + r/2 ||d'_i||^2 and F_i(w_i) >= F_i(w') + <g'_i, e_i> - r/2 ||e_i||^2, L rises by no more than the
#    sum of sigma' ||d'||^2 (the dual) + <g' + pi, d' - e> + (sigma' + r)/2 ||d'||^2 - (sigma' - r)/2 ||e||^2. At the
#    maximum in e, with a an eigenvalue of rho Q'/sigma' and q = r/sigma', that is C sigma' ||d'||^2 = (C/sigma') P',
#    C = 1 + max_a [-(1 - q)/2 - a + (1 + a)^2 / (2 (1 - q))], at a = 0 or a = theta because it is convex in a. For
#    convex F_i the term in ||e||^2 is sigma'/2, and C = 1 + theta^2/2 + q/2.
# 4. (2.14) in (2.13): pi_i = -g_i - rho Q_i d_i from the first round on, so (I + rho Q'_i/sigma') (pi'_i - pi_i) =
#    g_i - g'_i + (rho/sigma) Q_i (pi_i - pi_i^before). Hence P' <= theta P + r^2/(1 - theta) ||w' - w||^2 if
#    theta < 1; and if Q = I always and sigma stays, P' <= theta/(1 + theta) P + r^2/(1 + theta) ||w' - w||^2.
# 5. Together M' - M <= (remainder of P) - c ||w' - w||^2. The remainder is not positive for
#    kappa >= (1/gamma - 1 + gamma theta C)/(1 - gamma theta), and
#    c = (sigma + lambda)/2 - (1/gamma - 1) sigma - gamma (C + kappa) r^2 / ((1 - theta) sigma).
#    With Q = I and gamma = 1: kappa = theta C and c = (sigma + lambda)/2 - C r^2/sigma.
# 6. M is bounded from below by the objective at w, as kappa >= theta: it converges if c >= 0, and w' - w -> 0 if c
#    stays away from 0.


def merit(got: Any, lambda_: float, kappa: float) -> tuple[np.ndarray, np.ndarray]:
    """Return ``M`` after each round, and ``||w' - w||^2`` of the next step."""
    sigma = got.column("sigma")
    moved = (got.column("dual_residual") / sigma) ** 2
    # The column is computed after the step in w. (2.6) is quadratic in w, with its minimum there.
    value = got.column("exact_augmented_lagrangian") + (sigma + lambda_) / 2 * moved
    return value + kappa * sigma * got.column("primal_residual") ** 2, moved


def curvature(clients: list[Any], mu: float = 0.0) -> float:
    """Return the clients' Lipschitz constant ``r``."""
    return mu + float(max(np.linalg.eigvalsh(client.hessian(np.zeros(6)))[-1] for client in clients))


def least(lab: Any, clients: list[Any], lambda_: float, mu: float) -> float:
    """Return the least value of the objective, from the normal equations."""
    alpha = lab.by_samples(clients)
    pooled = sum(a * c.hessian(np.zeros(6)) for a, c in zip(alpha, clients, strict=True))
    force = -sum(a * c.gradient(np.zeros(6)) for a, c in zip(alpha, clients, strict=True))
    optimum = np.linalg.solve(pooled + (lambda_ + mu) * np.eye(6), force)
    value = sum(a * c.value(optimum) for a, c in zip(alpha, clients, strict=True))
    return float(value + (lambda_ + mu) / 2 * optimum @ optimum)


FAR = 10 * np.random.default_rng(0).normal(size=6)


@pytest.mark.parametrize("theta", [0.0, 0.25, 1.0, 3.0])
@pytest.mark.parametrize("regularised", [False, True])
def test_the_merit_function_never_increases(lab: Any, theta: float, regularised: bool) -> None:
    """With ``Q = I`` and convex losses, ``sigma (sigma + lambda) >= 2 C r^2`` suffices for descent.

    This holds for any theta in ``rho = theta sigma``.
    """
    lambda_, mu = (0.3, 0.1) if regularised else (0.0, 0.0)
    clients = lab.clients_of(lab.QUADRATIC)
    r = curvature(clients, mu)
    sigma = r * max(2.0, 1.1 * sqrt(2 + theta**2 + 0.5))
    bound = 1 + theta**2 / 2 + r / (2 * sigma)
    assert sigma * (sigma + lambda_) >= 2 * bound * r**2
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": "pisa", "sigma": sigma, "rho": theta * sigma,
            "lambda": lambda_, "mu": mu, "num-server-rounds": 400, "exact-diagnostics": True,
        },
        FAR,
    )  # fmt: skip
    values, moved = merit(got, lambda_, theta * bound)
    falls = ((sigma + lambda_) / 2 - bound * r**2 / sigma) * moved[:-1]
    assert (np.diff(values) <= -falls + 1e-14 * values[0]).all()
    # It falls from a much higher value to the objective's minimum.
    end = least(lab, clients, lambda_, mu)
    assert values[0] > 10 * end
    assert values[-1] == pytest.approx(end, rel=1e-10)


@pytest.mark.parametrize("scheme", ["adagrad", "rmsprop", "adam"])
@pytest.mark.parametrize(("gamma", "every"), [(0.75, 1), (0.75, 10), (1.0, 1)])
def test_it_never_increases_with_second_moments_and_a_growing_sigma(
    lab: Any, scheme: str, gamma: float, every: int
) -> None:
    """The merit function falls in the paper's setting, without the use of convexity.

    There ``Q <= eta I`` for the schemes, and ``gamma`` is in [3/4, 1].
    """
    lambda_, mu, theta, q, eps = 0.3, 0.1, 0.5, 0.25, 1e-8
    clients = lab.clients_of(lab.QUADRATIC)
    r = curvature(clients, mu)
    bound = 1 + max(-(1 - q) / 2 - a + (1 + a) ** 2 / (2 * (1 - q)) for a in (0, theta))
    kappa = max((1 / g - 1 + g * theta * bound) / (1 - g * theta) for g in (gamma, 1))
    # c > 0, also in rounds that do not change sigma, and r / sigma <= q.
    sigma = r * max(1 / q, *(sqrt((bound + kappa) * g / ((1 - theta) * (1.5 - 1 / g))) for g in (gamma, 1)))
    eta = 2.0
    got = lab.trace(
        {
            **lab.QUADRATIC, "algorithm": "pisa", "preconditioner": scheme, "eta": eta, "eps": eps,
            "rho": theta * sigma / (eta + eps), "sigma": sigma, "gamma": gamma, "gamma-every": every,
            "lambda": lambda_, "mu": mu, "num-server-rounds": 60, "exact-diagnostics": True,
        },
        FAR,
    )  # fmt: skip
    values, moved = merit(got, lambda_, kappa)
    now = got.column("sigma")[:-1]
    ratio = now / got.column("sigma")[1:]
    c = (now + lambda_) / 2 - (1 / ratio - 1) * now - ratio * (bound + kappa) * r**2 / ((1 - theta) * now)
    assert (c > 0).all()
    assert (np.diff(values) <= -c * moved[:-1] + 1e-14 * values[0]).all()
    assert values[0] > 10 * least(lab, clients, lambda_, mu)
    assert values[-1] >= least(lab, clients, lambda_, mu) * (1 - 1e-12)
    assert values[-1] < 0.9 * values[0]
    # The bound on the multipliers' steps holds separately.
    steps = (got.column("sigma") * got.column("primal_residual")) ** 2
    assert (steps[1:] <= (theta * steps[:-1] + r**2 / (1 - theta) * moved[:-1]) * (1 + 1e-9) + 1e-20).all()


def test_the_condition_is_nearly_necessary(lab: Any) -> None:
    """One client with ``rho = 0`` descends for ``sigma >= 1.618 r`` and diverges for ``sigma < 1.5 r``.

    The bound ``sigma^2 >= (2 + r/sigma) r^2`` gives the golden ratio. PISA is the optimistic gradient method
    here, which loses stability at 3/2.
    """
    values = {
        **lab.QUADRATIC, "num-clients": 1, "algorithm": "pisa", "rho": 0.0, "num-server-rounds": 200,
        "exact-diagnostics": True,
    }  # fmt: skip
    r = curvature(lab.clients_of(values))
    good, bad = (merit(lab.trace({**values, "sigma": s * r}, FAR), 0.0, 0.0)[0] for s in (1.619, 1.45))
    assert (np.diff(good) <= 1e-14 * good[0]).all()
    assert good[-1] < 1e-2 * good[0]
    assert bad[-1] > 1e3 * bad[0]


def test_the_lagrangian_rises_where_sigma_is_too_small(lab: Any) -> None:
    """With many clients and a penalty well below the curvature, the Lagrangian rises."""
    values = {
        **lab.QUADRATIC, "algorithm": "pisa", "sigma": 0.5, "rho": 0.0, "num-server-rounds": 20,
        "exact-diagnostics": True,
    }  # fmt: skip
    value = lab.trace(values).column("exact_augmented_lagrangian")
    assert any(later > earlier for earlier, later in pairwise(value))


@final
@dataclass(frozen=True)
class Bowl:
    """``f(v) = v . A v / 2``, which records the points where its gradient is evaluated."""

    matrix_PP: Tensor
    layout: ParamLayout
    asked: list[Tensor]

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        self.asked.append(params_P)
        slope_P = self.matrix_PP @ params_P
        return params_P @ slope_P / 2, slope_P


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "preconditioner", [Identity(), Adam(), NewtonSchulz()], ids=lambda rule: type(rule).__name__
)
def test_the_estimate_is_first_order_along_the_path(preconditioner: Preconditioner, reduction: str) -> None:
    """With several local steps the estimate is a first-order sum along the path.

    It is ``F(w) + sum_k <grad F(v_k), v_(k+1) - v_k>``, plus the new dual's term and the penalty.
    """
    generator = torch.Generator().manual_seed(0)
    sigma, mu, count = 0.7, 0.2, 2 if reduction == "sum" else 1
    layout = ParamLayout.of([("weight", torch.zeros(3, 2)), ("bias", torch.zeros(3))])
    half_PP = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    gradient = Bowl(half_PP @ half_PP.T, layout, [])
    update = PisaUpdate(
        preconditioner,
        sigma=sigma,
        rho=2.0,
        mu=mu,
        gradient_reduction=reduction,  # type: ignore[arg-type]
    )
    down = {"params": torch.randn(9, generator=generator, dtype=torch.float64)}
    state = {**update.init(down["params"]), "dual": torch.randn(9, generator=generator, dtype=torch.float64)}
    batch = MiniBatches(torch.zeros(2, 1), torch.zeros(2, 1), torch.full((2, 1), 0.5, dtype=torch.float64))
    work, path = update.start(down, state), [down["params"]]
    for _ in range(3):
        work = update.step(gradient, down, state, work, batch)
        path.append(down["params"] + work["drift"])
    outcome = update.finish(down, state, work)
    assert all(torch.equal(v, asked) for v, asked in zip(path, gradient.asked, strict=False))

    def stochastic_gradient(v: Tensor) -> Tensor:
        return count * gradient.matrix_PP @ v + mu * v

    steps = sum(stochastic_gradient(v) @ (after - v) for v, after in pairwise(path))
    value = path[0] @ stochastic_gradient(path[0]) / 2 + steps
    drift = path[-1] - path[0]
    wanted = value + outcome.state["dual"] @ drift + sigma / 2 * drift @ drift
    torch.testing.assert_close(outcome.metrics["lagrangian"], wanted, rtol=1e-12, atol=1e-12)
