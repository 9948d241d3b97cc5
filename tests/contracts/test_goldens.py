"""Rounds of two clients and one weight, worked out by hand as fractions in the docstrings.

Client 0 has one sample and ``f_0(w) = (w - 4)^2 / 2``; client 1 has three equal samples and
``f_1(w) = (w + 2)^2 / 2``. So ``g_0 = w - 4``, ``g_1 = w + 2``, ``alpha = (1/4, 3/4)``, and the optimum of
the mean is ``-1/2``. The model starts at ``w^0 = 2``.
"""

from __future__ import annotations

from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedpisa.clients.preconditioners import Adam
from fedpisa.flower.compat import to_tensors

TOLERANCE = 1e-14


@pytest.fixture
def two(lab: Any, engine: str) -> Any:
    """Return the federation of the two clients."""

    def federation(name: str, sizes: tuple[int, int] = (1, 3), **keys: Any) -> Any:
        values = {key.rstrip("_").replace("_", "-"): value for key, value in keys.items()}
        algorithm = lab.Case(name, {"batch-size": "full", **values}).build()
        module = nn.Linear(1, 1, bias=False).double()
        nn.init.constant_(module.weight, 2.0)
        y = np.repeat([4.0, -2.0], sizes)
        return lab.Federation(
            algorithm, module, np.ones((sum(sizes), 1)), y, lab.split(sizes), engine, num_classes=None
        )

    return federation


def models(federation: Any, num_rounds: int) -> list[float]:
    """Return the model after each round."""
    federation.run(num_rounds)
    return [float(finished.arrays["params"].numpy()[0]) for finished in federation.history]


def duals(federation: Any) -> list[float]:
    return [float(state["dual"]) for state in federation.states()]


def near(*wanted: Fraction | float) -> Any:
    return pytest.approx([float(value) for value in wanted], rel=TOLERANCE, abs=TOLERANCE)


F = Fraction


# ------------------------------------------------------------------------------------------------- pisa


def test_pisa_with_lambda_for_two_rounds(two: Any) -> None:
    """``sigma = rho = 1``, ``lambda = 1/2``, ``Q = 1``; steps are divided by ``sigma + rho Q = 2``.

    First broadcast (2.9): ``w^1 = sigma w^0 / (sigma + lambda) = 2 / (3/2) = 4/3``.

    Round 1, ``w = 4/3``: ``g = (-8/3, 10/3)``; drift ``-(pi + g)/2 = (4/3, -5/3)``; ``pi = sigma drift =
    (4/3, -5/3)``; ``w_i = (8/3, -1/3)``; ``z_i = w_i + pi_i = (4, -2)``.
    ``w = (1/4 * 4 - 3/4 * 2) / (3/2) = (-1/2) / (3/2) = -1/3``.

    Round 2, ``w = -1/3``: ``g = (-13/3, 5/3)``; ``pi + g = (-3, 0)``; drift ``(3/2, 0)``;
    ``pi = (17/6, -5/3)``; ``w_i = (7/6, -1/3)``; ``z_i = (4, -2)``; ``w = -1/3``, the optimum of
    ``F + w^2/4``: ``(w - 4)/4 + 3 (w + 2)/4 + w/2 = 0`` at ``w = -1/3``.

    Diagnostics of round 2: primal ``sqrt(1/4 * 9/4 + 0) = 3/4``, dual ``sigma |w^3 - w^2| = 0``,
    stationarity ``|17/24 - 5/4 + 1/6| = 3/8``.
    """
    federation = two("pisa", sigma=1.0, rho=1.0, lambda_=0.5)
    first = to_tensors(federation.strategy.start_from(federation.initial), torch.float64)
    assert float(first["params"]) == pytest.approx(4 / 3, rel=TOLERANCE)
    assert models(federation, 2) == near(F(-1, 3), F(-1, 3))
    assert duals(federation) == near(F(17, 6), F(-5, 3))
    last = federation.history[-1].train_metrics
    assert last["primal_residual"] == pytest.approx(0.75, rel=TOLERANCE)
    assert last["dual_residual"] == pytest.approx(0, abs=TOLERANCE)
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    stationarity = federation.algorithm.stationarity(federation.strategy.server, federation.grid, weights)
    assert stationarity["stationarity"] == pytest.approx(0.375, rel=TOLERANCE)


def test_pisa_with_a_growing_penalty(two: Any) -> None:
    """``sigma = 1``, ``gamma = 1/2`` every second round: ``sigma^1 = sigma^2 = 2``; ``rho = 2``; divisor 4.

    Round 1, ``w = 2``: ``g = (-2, 4)``; drift ``(1/2, -1)``; ``pi = 2 drift = (1, -2)``;
    ``z = w + drift + pi/2 = (3, 0)``; ``w = 3/4``.
    Round 2: ``g = (-13/4, 11/4)``; ``pi + g = (-9/4, 3/4)``; drift ``(9/16, -3/16)``;
    ``pi = (17/8, -19/8)``; ``z = (3/4 + 9/16 + 17/16, 3/4 - 3/16 - 19/16) = (19/8, -5/8)``;
    ``w = 19/32 - 15/32 = 1/8``.
    Round 3, ``sigma = 4``, divisor 6: ``g = (-31/8, 17/8)``; ``pi + g = (-7/4, -1/4)``; drift ``(7/24, 1/24)``;
    ``pi = (17/8 + 7/6, -19/8 + 1/6) = (79/24, -53/24)``;
    ``z = (1/8 + 7/24 + 79/96, 1/8 + 1/24 - 53/96) = (119/96, -37/96)``; ``w = (119 - 111)/384 = 1/48``.
    """
    federation = two("pisa", sigma=1.0, rho=2.0, gamma=0.5, gamma_every=2)
    assert models(federation, 3) == near(F(3, 4), F(1, 8), F(1, 48))
    assert duals(federation) == near(F(79, 24), F(-53, 24))
    assert [finished.train_metrics["sigma"] for finished in federation.history] == [2.0, 2.0, 4.0]


def test_pisa_with_two_local_steps_and_a_local_ridge(two: Any) -> None:
    """``sigma = rho = 1``, ``mu = 1``, ``K = 2``; ``g_0 = 2 v - 4``, ``g_1 = 2 v + 2``; divisor 2.

    From ``w = 2``: ``q = (0, 6)``; drift ``(0, -3)``. Then ``v = (2, -1)``, ``g = (0, 0)``,
    ``pi + g + sigma drift = (0, -3)``; drift ``(0, -3/2)``. So ``w_i = (2, 1/2)``, ``pi = (0, -3/2)``,
    ``z = (2, -1)``, ``w = 1/2 - 3/4 = -1/4``.
    """
    federation = two("pisa", sigma=1.0, rho=1.0, mu=1.0, local_steps=2)
    assert models(federation, 1) == near(F(-1, 4))
    assert duals(federation) == near(0, F(-3, 2))


def test_the_sum_of_mini_batch_gradients_against_their_mean(two: Any) -> None:
    """Mini-batches of one sample, all of them: client 1 has three, so its "sum" is ``3 g_1``.

    ``sigma = rho = 1``, divisor 2, ``w = 2``, ``g = (-2, 4)``.
    Mean: drift ``(1, -2)``, ``z = w + 2 drift = (4, -2)``, ``w = 1 - 3/2 = -1/2``.
    Sum: ``q = (-2, 12)``, drift ``(1, -6)``, ``z = (4, -10)``, ``w = 1 - 15/2 = -13/2``.
    """
    keys = {"sigma": 1.0, "rho": 1.0, "batch_size": 1, "batches_per_round": "all"}
    assert models(two("pisa", **keys), 1) == near(F(-1, 2))
    assert models(two("pisa", **keys, gradient_reduction="sum"), 1) == near(F(-13, 2))


def test_the_sums_bias_is_that_of_squared_sizes(two: Any) -> None:
    """With "sum" the fixed point minimises ``sum n_i^2 f_i``: ``(4 - 9 * 2) / 10 = -7/5``, not ``-1/2``."""
    keys = {"sigma": 8.0, "rho": 0.0, "batch_size": 1, "batches_per_round": "all"}
    mean, sum_ = two("pisa", **keys), two("pisa", **keys, gradient_reduction="sum")
    assert models(mean, 80)[-1] == pytest.approx(-0.5, abs=1e-3)
    assert models(sum_, 80)[-1] == pytest.approx(-1.4, abs=1e-3)


@pytest.mark.parametrize(
    ("absent", "wanted"),
    [
        ("keep", (F(3), F(9, 8), F(69, 64))),
        ("drop", (F(3), F(1, 2), F(5, 2))),
        ("fresh", (F(11, 4), F(51, 64), F(897, 1024))),
    ],
)
def test_the_contribution_of_absent_clients(two: Any, absent: str, wanted: tuple[Fraction, ...]) -> None:
    """Client 0, then client 1, then client 0 alone; ``sigma = 1``, ``rho = 3``, divisor 4.

    Round 1, ``w = 2``, client 0: ``g = -2``, drift ``1/2``, ``pi_0 = 1/2``, ``z_0 = 3``. Only it was seen: ``w = 3``.
    Round 2, ``w = 3``, client 1: ``g = 5``, drift ``-5/4``, ``pi_1 = -5/4``, ``z_1 = 1/2``.
    Keep: ``w = 3/4 + 3/8 = 9/8``. Drop: ``w = 1/2``.
    Round 3, client 0. Keep, ``w = 9/8``: ``g = -23/8``, ``pi + g = -19/8``, drift ``19/32``, ``pi_0 = 35/32``,
    ``z_0 = 45/16``, ``w = 45/64 + 3/8 = 69/64``. Drop, ``w = 1/2``: ``g = -7/2``, ``pi + g = -3``, drift ``3/4``,
    ``pi_0 = 5/4``, ``z_0 = 5/2``, ``w = 5/2``.
    Fresh, ``w = w_i + Pi``: client 1 was not seen in round 1 and counts like client 0, ``Pi = pi_0/2 = 1/4``,
    ``w = 5/2 + 1/4 = 11/4``. Round 2: ``g = 19/4``, drift ``pi_1 = -19/16``, ``Pi = 1/8 - 57/64 = -49/64``,
    ``w = 25/16 - 49/64 = 51/64``. Round 3: ``pi + g = 1/2 - 205/64``, drift ``173/256``,
    ``Pi = -49/64 + 173/1024``, ``w = 377/256 - 611/1024 = 897/1024``.
    """
    federation = two("pisa", sigma=1.0, rho=3.0, absent=absent)
    model, strategy, grid = federation.initial, federation.strategy, federation.grid
    got = []
    for server_round, client_id in ((1, 0), (2, 1), (3, 0)):
        requests = [
            request
            for request in strategy.configure_train(server_round, model, {}, grid)
            if grid.client_of(request.metadata.dst_node_id) == client_id
        ]
        model, _ = strategy.aggregate_train(server_round, grid.send_and_receive(requests))
        got.append(float(model["params"].numpy()[0]))
    assert got == near(*wanted)


def test_uniform_weights(two: Any) -> None:
    """``alpha = 1/2``, ``sigma = 1``, ``rho = 3``: ``z = (3, 0)``, ``w = 3/2``."""
    assert models(two("pisa", sigma=1.0, rho=3.0, weighting="uniform"), 1) == near(F(3, 2))


# ------------------------------------------------------------------------------------------------- sisa

# Round 1 of all schemes starts at w = 2 with q = (-2, 4); sigma = rho = 1, eps = 0, beta = 3/4.
SISA = {"sigma": 1.0, "rho": 1.0, "eps": 0.0}


def second_round(w: float, pi: tuple[float, float], drift: tuple[float, float]) -> float:
    """Return ``sum alpha_i (w + drift_i + pi_i + drift_i)`` for ``sigma = 1``."""
    return sum(a * (w + p + 2 * d) for a, p, d in zip((0.25, 0.75), pi, drift, strict=True))


def test_scheme_one(two: Any) -> None:
    """``n = (4, 16)``, ``Q = (2, 4)``: drift ``(2/3, -4/5)``, ``z = (10/3, 2/5)``, ``w = 5/6 + 3/10 = 17/15``.

    Then ``q = (2/3 - 43/15, -4/5 + 47/15) = (-11/5, 7/3)``, ``n = (4 + 121/25, 16 + 49/9)``,
    ``Q = (sqrt(221)/5, sqrt(193)/3)``, drift ``(11/(5 + sqrt 221), -7/(3 + sqrt 193))``.
    """
    drift = 11 / (5 + sqrt(221)), -7 / (3 + sqrt(193))
    wanted = second_round(17 / 15, (2 / 3, -4 / 5), drift)
    assert models(two("sisa", preconditioner="adagrad", **SISA), 2) == near(F(17, 15), wanted)


def test_scheme_two(two: Any) -> None:
    """``n = q^2/4 = (1, 4)``, ``Q = (1, 2)``: drift ``(1, -4/3)``, ``z = (4, -2/3)``, ``w = 1/2``.

    Then ``q = (1 - 7/2, -4/3 + 5/2) = (-5/2, 7/6)``, ``n = (3/4 + 25/16, 3 + 49/144) = (37/16, 481/144)``,
    drift ``(10/(4 + sqrt 37), -14/(12 + sqrt 481))``.
    """
    drift = 10 / (4 + sqrt(37)), -14 / (12 + sqrt(481))
    wanted = second_round(1 / 2, (1, -4 / 3), drift)
    federation = two("sisa", preconditioner="rmsprop", beta=0.75, **SISA)
    assert models(federation, 2) == near(F(1, 2), wanted)
    assert [float(s["second-moment"]) for s in federation.states()] == near(F(37, 16), F(481, 144))


def test_scheme_three(two: Any) -> None:
    """``n/(1 - beta) = q^2``: round 1 is Scheme I's, ``w = 17/15``, ``q = (-11/5, 7/3)``.

    ``n = (3/4 + 121/100, 3 + 49/36) = (49/25, 157/36)``, and ``1 - beta^2 = 7/16``: ``Q^2 = (112/25, 628/63)``,
    drift ``(11/(5 + sqrt 112), -7/3/(1 + sqrt(628/63)))``.
    """
    drift = 11 / (5 + sqrt(112)), -7 / 3 / (1 + sqrt(628 / 63))
    wanted = second_round(17 / 15, (2 / 3, -4 / 5), drift)
    federation = two("sisa", beta=0.75, **SISA)
    assert models(federation, 2) == near(F(17, 15), wanted)
    assert [float(s["second-moment"]) for s in federation.states()] == near(F(49, 25), F(157, 36))
    assert [float(s["count"]) for s in federation.states()] == [2.0, 2.0]


def test_scheme_three_with_the_public_codes_constant(two: Any) -> None:
    """Always divided by ``1 - beta = 1/4``: ``Q^2 = (196/25, 157/9)``, drift ``(11/19, -7/(3 + sqrt 157))``."""
    wanted = second_round(17 / 15, (2 / 3, -4 / 5), (11 / 19, -7 / (3 + sqrt(157))))
    assert models(two("sisa", beta=0.75, bias_correction="constant", **SISA), 2) == near(F(17, 15), wanted)


def test_amsgrad_keeps_the_largest_moment(two: Any) -> None:
    """Scheme III's ``Q^2`` falls from 16 to 628/63 at client 1, which keeps 16: drift ``(.., -7/3/5)``."""
    drift = 11 / (5 + sqrt(112)), -7 / 3 / 5
    wanted = second_round(17 / 15, (2 / 3, -4 / 5), drift)
    federation = two("sisa", beta=0.75, amsgrad=True, **SISA)
    assert models(federation, 2) == near(F(17, 15), wanted)
    assert [float(s["largest-moment"]) for s in federation.states()] == near(F(112, 25), 16)


def test_eta_bounds_the_preconditioner(two: Any) -> None:
    """``eta = 1``: ``Q = (1, 1)``, drift ``(1, -2)``, ``z = (4, -2)``, ``w = -1/2``; ``eta = 3``: ``Q = (2, 3)``.

    There drift is ``(2/3, -1)``, ``z = (10/3, 0)``, ``w = 5/6``. Plain PISA has ``Q = min(1, eta)``: with
    ``eta = 1/3`` divisor ``4/3``, drift ``(3/2, -3)``, ``z = (5, -4)``, ``w = 5/4 - 3 = -7/4``.
    """
    for scheme in ("adagrad", "adam"):
        assert models(two("sisa", preconditioner=scheme, eta=1.0, **SISA), 1) == near(F(-1, 2))
        assert models(two("sisa", preconditioner=scheme, eta=3.0, **SISA), 1) == near(F(5, 6))
    assert models(two("pisa", sigma=1.0, rho=1.0, eta=1 / 3), 1) == near(F(-7, 4))


# -------------------------------------------------------------------------------------------- baselines

HALF = {"learning_rate": 0.5}


def test_fedavg_weighs_by_samples(two: Any) -> None:
    """One full step: ``v = (3, 0)``, ``w = 3/4``. Mini-batches of one: client 1 goes ``0, -1, -3/2``; ``w = -3/8``."""
    assert models(two("fedavg", **HALF), 1) == near(F(3, 4))
    assert models(two("fedavg", batch_size=1, **HALF), 1) == near(F(-3, 8))


def test_fedavg_with_momentum_and_weight_decay(two: Any) -> None:
    """``m = 1/2``, two steps: ``m_0 = -2, -2``, ``v_0 = 3, 4``; ``m_1 = 4, 4``, ``v_1 = 0, -2``; ``w = -1/2``.

    Round 2 begins with momentum zero: from ``w = -1/2``, ``m_0 = -9/2, -9/2``, ``v_0 = 7/4, 4``;
    ``m_1 = 3/2, 3/2``, ``v_1 = -5/4, -2``; again ``w = -1/2``.

    Weight decay 1, one step: ``g = (-2 + 2, 4 + 2)``, ``v = (2, -1)``, ``w = -1/4``.
    """
    assert models(two("fedavg", local_steps=2, momentum=0.5, **HALF), 2) == near(F(-1, 2), F(-1, 2))
    assert models(two("fedavg", weight_decay=1.0, **HALF), 1) == near(F(-1, 4))


def test_fedavgs_fixed_point_is_biased(two: Any) -> None:
    """Client 1 takes two steps, so the fixed point is not the optimum.

    Samples (1, 2), mini-batches of one, learning rate 1/2: ``v_0 = (w + 4)/2``, ``v_1 = (w - 6)/4``;
    ``w = v_0/3 + 2 v_1/3 = (w + 4)/6 + (w - 6)/6``, so ``w = -1/2``; the optimum is ``(4 - 2 * 2)/3 = 0``.
    """
    assert models(two("fedavg", (1, 2), batch_size=1, **HALF), 60)[-1] == pytest.approx(-0.5, abs=1e-12)


def test_localsgd_is_the_plain_mean(two: Any) -> None:
    """Two steps: ``v = (7/2, -1)``, ``w = 5/4``; then ``v = (53/16, -19/16)``, ``w = 17/16``."""
    assert models(two("localsgd", local_steps=2, **HALF), 2) == near(F(5, 4), F(17, 16))


def test_fedsgd_with_momentum(two: Any) -> None:
    """``G = w + 1/2``; ``m = 5/2, 5/2, 5/4``; ``w = 3/4, -1/2, -9/8``. The server keeps its momentum."""
    assert models(two("fedsgd", momentum=0.5, **HALF), 3) == near(F(3, 4), F(-1, 2), F(-9, 8))


def test_fedsgd_with_a_ridge_and_with_adam(two: Any) -> None:
    """``mu = 1``: ``G = 2 w + 1/2 = 9/2``, ``w = -1/4``. Adam's first step is the learning rate, up to ``eps``."""
    assert models(two("fedsgd", mu=1.0, **HALF), 1) == near(F(-1, 4))
    wanted = 2 - 0.1 * 2.5 / (2.5 + 1e-8)
    assert models(two("fedsgd", optimizer="adam", learning_rate=0.1), 1) == near(wanted)


# ------------------------------------------------------------------------------------------ diagnostics


def test_the_augmented_lagrangian_by_hand(two: Any) -> None:
    """``sigma = rho = 1``, ``lambda = 1/2``, after round 1 of `test_pisa_with_lambda_for_two_rounds`.

    Exact (2.6) at ``w = -1/3``, ``w_i = (8/3, -1/3)``, ``pi = (4/3, -5/3)``:
    client 0: ``f = 8/9``, ``pi d + d^2/2 = 4 + 9/2``, together ``169/18``; client 1: ``f = 25/18``, ``d = 0``;
    ``1/4 * 169/18 + 3/4 * 25/18 + 1/4 * 1/9 = 244/72 + 2/72 = 41/12``.

    Estimated at the broadcast ``w = 4/3``, ``F_i(w_i)`` to first order: client 0: ``32/9 - 32/9 + 16/9 + 8/9 =
    8/3``; client 1: ``50/9 - 50/9 + 25/9 + 25/18 = 25/6``; ``2/3 + 25/8 + 4/9 = 305/72``.
    """
    from fedpisa.tasks.full_objective import FullObjective

    federation = two("pisa", sigma=1.0, rho=1.0, lambda_=0.5)
    models(federation, 1)
    estimate = federation.history[0].train_metrics["augmented_lagrangian"]
    assert estimate == pytest.approx(305 / 72, rel=TOLERANCE)
    objective = FullObjective(federation.task, federation.data, torch.zeros(0))
    weights = torch.tensor([0.25, 0.75], dtype=torch.float64)
    exact = federation.algorithm.exact_diagnostics(
        federation.strategy.server, federation.grid, objective, weights
    )
    assert exact["exact_augmented_lagrangian"] == pytest.approx(41 / 12, rel=TOLERANCE)
    # F(-1/3) = (169/18)/4 + (25/18) 3/4 + (1/9)/4, and its gradient vanishes: -1/3 is the optimum.
    assert exact["objective"] == pytest.approx(41 / 12, rel=TOLERANCE)
    assert exact["gradient_norm"] == pytest.approx(0, abs=TOLERANCE)


def test_a_node_that_joins_later_is_counted_from_then_on(two: Any) -> None:
    """Client 1 joins the Grid in round 2; the result is as if it had been absent in round 1.

    ``sigma = 1``, ``rho = 3``. Round 1: ``w = 3``, ``z_0 = 3``, ``pi_0 = 1/2``. Round 2, ``w = 3``: client 0 has
    ``pi + g = -1/2``, drift ``1/8``, ``pi_0 = 5/8``, ``z_0 = 15/4``; client 1 ``z_1 = 1/2``;
    ``w = 15/16 + 3/8 = 21/16``.
    """
    federation = two("pisa", sigma=1.0, rho=3.0)
    model, strategy, grid = federation.initial, federation.strategy, federation.grid
    for server_round, nodes in ((1, [2]), (2, [2, 3])):
        grid.get_node_ids = lambda nodes=nodes: nodes
        requests = list(strategy.configure_train(server_round, model, {}, grid))
        grid.get_node_ids = lambda: range(2, 4)
        model, _ = strategy.aggregate_train(server_round, list(grid.send_and_receive(requests)))
    assert float(model["params"].numpy()[0]) == pytest.approx(21 / 16, rel=TOLERANCE)


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.999, 0.999999])
def test_the_bias_correction_keeps_its_digits(beta: float, dtype: str) -> None:
    """At ``t = 1`` the corrected moment is ``q^2`` for any ``beta``, so ``Q = |q|`` to rounding."""
    adam = Adam(beta=beta, eps=0.0)
    q = torch.tensor([3.0, -0.5, 1e-3], dtype=getattr(torch, dtype))
    memory = adam.init(q)
    for _ in range(3):  # q is constant, so its corrected mean is q^2 in every step
        scale, memory = adam(q, q, memory)
        torch.testing.assert_close(scale, q.abs(), rtol=20 * torch.finfo(q.dtype).eps, atol=0)
