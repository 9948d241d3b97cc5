"""The primal-dual family: optimum, multipliers, rates, identities, and rounds by hand.

All tests use float64 and least squares, where the optimum is known and a round is a linear map.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fedpisa
from fedpisa import families
from fedpisa.datasets.client_data import ClientData
from fedpisa.families.data import load
from fedpisa.flower.compat import to_record
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.grid import VmapGrid
from fedpisa.strategies.primaldual import PrimalDual
from fedpisa.tasks.supervised import supervised

NUM_CLIENTS = 8
# Each algorithm takes those of these keys that it has. The clients' largest curvature is below 2.
KEYS = {"batch-size": "full", "sigma": 1.0, "learning-rate": 0.3, "proximity": 2.0, "local-steps": 5}
FAMILY = ("feddyn", "fedadmm", "fedpd", "feddr", "iceadmm", "iiadmm", "fedgia")


def build(name: str, **more: object) -> Any:
    component = families.find("algorithm", name)
    wanted = {**KEYS, **{key.rstrip("_").replace("_", "-"): value for key, value in more.items()}}
    own = families.keys_of(component, {})
    algorithm = families.build(component, {key: value for key, value in wanted.items() if key in own})
    assert isinstance(algorithm, PrimalDual)
    return algorithm


class Run:
    """An algorithm on clients with the given samples, from a given start."""

    def __init__(
        self, algorithm: Any, x: Any, y: Any, partition: Any, start: Any, fraction: float = 1.0, seed: int = 0
    ) -> None:
        module = nn.Linear(x.shape[1], 1, bias=False).double()
        with torch.no_grad():
            module.weight.copy_(torch.as_tensor(start))
        task = supervised(module, None)
        data = ClientData.of(x, y, partition, torch.float64)
        self.algorithm, self.data = algorithm, data
        self.grid = VmapGrid(task, algorithm.local_update, data, seed)
        self.strategy = AlgorithmStrategy(algorithm, task.layout, fraction_train=fraction, seed=seed)
        self.initial = to_record({"params": task.initial_params()})

    def models(self, num_rounds: int) -> np.ndarray:
        """Return the model after each round ``(T, P)``."""
        self.rounds = list(rounds(self.strategy, self.grid, self.initial, num_rounds))
        return np.array([finished.arrays["params"].numpy() for finished in self.rounds])

    def duals(self) -> np.ndarray:
        """Return all clients' duals ``(N, P)``."""
        states = [self.grid.state(client_id) for client_id in range(self.data.num_clients)]
        return np.array([state["dual"].numpy() for state in states if state is not None])


class Quadratic:
    """The data set ``quadratic`` with its clients' Hessians and minimisers."""

    def __init__(self, num_clients: int = NUM_CLIENTS, **options: Any) -> None:
        data = load("quadratic", seed=0, num_clients=num_clients, **options)
        assert data.groups is not None
        self.data = data
        self.parts = [np.flatnonzero(data.groups == client) for client in range(num_clients)]
        self.sizes = np.array([len(part) for part in self.parts])
        self.hessians = np.array(
            [data.x_train[part].T @ data.x_train[part] / len(part) for part in self.parts]
        )
        self.minima = np.asarray(data.ground_truth["client-optima"])

    def optimum(self, alpha: np.ndarray, lambda_: float = 0.0, mu: float = 0.0) -> np.ndarray:
        ridge = (lambda_ + mu) * np.eye(self.minima.shape[1])
        return np.linalg.solve(
            np.tensordot(alpha, self.hessians, 1) + ridge,
            np.einsum("i,ijk,ik->j", alpha, self.hessians, self.minima),
        )

    def alpha(self, weighting: str = "num-examples") -> np.ndarray:
        raw = self.sizes if weighting == "num-examples" else np.ones(len(self.sizes))
        return raw / raw.sum()

    def gradients(self, w: np.ndarray, mu: float = 0.0) -> np.ndarray:
        return np.einsum("ijk,ik->ij", self.hessians, w - self.minima) + mu * w

    def run(self, algorithm: Any, fraction: float = 1.0, seed: int = 0) -> Run:
        start = np.zeros(self.minima.shape[1])
        return Run(algorithm, self.data.x_train, self.data.y_train, self.parts, start, fraction, seed)


@cache
def quadratic() -> Quadratic:
    return Quadratic()


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


# ---------------------------------------------------------------------------------------------- optimum


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize("name", FAMILY)
def test_the_weighted_optimum_is_reached_with_several_local_steps(name: str, fraction: float) -> None:
    """Five local steps reach the ``n_i``-weighted optimum, where ``pi_i = -grad F_i``.

    The clients have 10 to 80 samples.
    """
    problem = quadratic()
    run = problem.run(build(name), fraction)
    model = run.models(300 if fraction == 1.0 else 500)[-1]
    optimum = np.asarray(problem.data.ground_truth["optimum"])
    assert relative(problem.optimum(problem.alpha()), optimum) <= 1e-12
    assert relative(model, optimum) <= 1e-8
    assert relative(run.duals(), -problem.gradients(optimum)) <= 1e-7
    assert np.abs(problem.alpha() @ run.duals()).max() <= 1e-8
    assert run.rounds[-1].train_metrics["primal_residual"] <= 1e-7


@pytest.mark.parametrize("name", FAMILY)
def test_clients_may_join_late(name: str) -> None:
    """The optimum is reached although three of the eight clients join after 20 rounds."""
    problem = quadratic()
    run = problem.run(build(name))
    everybody, nodes = run.grid.get_node_ids(), run.grid.get_node_ids()[:5]
    run.grid.get_node_ids = lambda: nodes  # type: ignore[method-assign]
    for finished in rounds(run.strategy, run.grid, run.initial, 300):
        nodes = nodes if finished.server_round < 20 else everybody
    model = finished.arrays["params"].numpy()
    assert relative(model, problem.optimum(problem.alpha())) <= 1e-8


@pytest.mark.parametrize("name", FAMILY)
def test_the_optimum_of_other_objectives(name: str) -> None:
    """Uniform weights and global and local L2 move the optimum, and ``sum_i alpha_i pi_i = lambda w``."""
    problem = quadratic()
    ridge = {"mu": 0.2, "weight-decay": 0.2}
    algorithm = build(name, weighting="uniform", lambda_=0.3, **ridge)
    assert algorithm.regularization == pytest.approx(0.5)
    alpha = problem.alpha("uniform")
    wanted = problem.optimum(alpha, 0.3, 0.2)
    assert relative(wanted, problem.optimum(problem.alpha(), 0.3, 0.2)) > 1e-2
    run = problem.run(algorithm, fraction=0.5)
    assert relative(run.models(300)[-1], wanted) <= 1e-8
    assert relative(run.duals(), -problem.gradients(wanted, 0.2)) <= 1e-7
    assert relative(alpha @ run.duals(), 0.3 * wanted) <= 1e-7


def test_momentum_and_relaxation_do_not_move_the_optimum() -> None:
    problem = quadratic()
    optimum = problem.optimum(problem.alpha())
    for algorithm in (
        build("feddyn", momentum=0.5),
        build("feddr", relaxation=1.5),
        build("fedgia", admm_share=1.0),
    ):
        assert relative(problem.run(algorithm).models(400)[-1], optimum) <= 1e-8


def test_a_fixed_server_step_ends_beside_the_optimum_where_clients_are_absent() -> None:
    """FedADMM with ``eta = 1`` follows the mean of all ``z_i`` only if all clients take part.

    With ``eta = |S| / N`` it always does.
    """
    problem = quadratic()
    optimum = problem.optimum(problem.alpha())
    assert relative(problem.run(build("fedadmm", server_step=1.0)).models(300)[-1], optimum) <= 1e-8
    assert relative(problem.run(build("fedadmm", server_step=1.0), 0.5).models(300)[-1], optimum) > 0.05


def test_skipped_rounds_are_free_going_up_and_cost_exactness() -> None:
    """FedPD uploads nothing and keeps the model in a skipped round, and misses the optimum.

    In skipped rounds each client moves towards its own minimum.
    """
    problem = quadratic()
    algorithm = build("fedpd", skip_probability=0.5)
    skipped = [algorithm.local_update.skips(server_round) for server_round in range(1, 101)]
    run = problem.run(algorithm)
    models = run.models(100)
    assert 30 < sum(skipped) < 70
    assert [finished.bytes_up == 0 for finished in run.rounds] == skipped
    for before, after, skip in zip(models, models[1:], skipped[1:], strict=False):
        assert np.array_equal(before, after) == skip
    assert relative(models[-1], problem.optimum(problem.alpha())) > 1e-3
    # Clients that differ only in their minimum lose nothing, as the paper assumes.
    alike = Quadratic(condition=1.0)
    alike.hessians[:] = np.eye(10)
    scale = np.sqrt(np.asarray(alike.data.ground_truth["lipschitz"]))[alike.data.groups]
    x, y = alike.data.x_train / scale[:, None], alike.data.y_train / scale
    exact = Run(algorithm, x, y, alike.parts, np.zeros(10)).models(200)[-1]
    assert relative(exact, alike.optimum(alike.alpha())) <= 1e-8


# ------------------------------------------------------------------------------------------------ rates


def local_map(problem: Quadratic, rate: float, sigma: float, steps: int) -> np.ndarray:
    """Return ``P_i`` of ``v_K - c = -P_i (grad f_i(c) + pi_i)`` after K gradient steps ``(N, P, P)``."""
    eye = np.eye(problem.minima.shape[1])
    stiff = problem.hessians + sigma * eye
    contraction = np.array([np.linalg.matrix_power(eye - rate * h, steps) for h in stiff])
    return np.array([np.linalg.solve(h, eye - c) for h, c in zip(stiff, contraction, strict=True)])


def round_map(problem: Quadratic, sigma: float, local: np.ndarray) -> np.ndarray:
    """Return the linear part of a round of ADMM with all clients, acting on ``(w - w*, pi - pi*)``."""
    alpha, (n, d) = problem.alpha(), problem.minima.shape
    dual = np.zeros((n, d, n + 1, d))
    for i in range(n):
        dual[i, :, 0] = -sigma * local[i] @ problem.hessians[i]
        dual[i, :, i + 1] = np.eye(d) - sigma * local[i]
    model = np.zeros((d, n + 1, d))
    model[:, 0] = np.eye(d)
    for i in range(n):
        model[:, 0] -= alpha[i] * local[i] @ problem.hessians[i]
        model[:, i + 1] -= alpha[i] * local[i]
        model += alpha[i] * dual[i] / sigma
    return np.concatenate([model[None], dual]).reshape((n + 1) * d, (n + 1) * d)


@pytest.mark.parametrize("name", ["feddyn", "fedadmm", "fedpd", "feddr"])
def test_the_rate_is_the_spectral_radius_of_the_round(name: str) -> None:
    """With all clients, a round is one linear map, and the measured rate is its spectral radius."""
    problem = quadratic()
    sigma, rate, steps = 0.5, 0.3, 5
    map_ = round_map(problem, sigma, local_map(problem, rate, sigma, steps))
    optimum = problem.optimum(problem.alpha())
    models = problem.run(build(name, sigma=sigma, learning_rate=rate, local_steps=steps)).models(61)
    # At first w = 0 and pi = 0; at the solution w* and -grad F_i(w*).
    error = np.concatenate([-optimum, problem.gradients(optimum).ravel()])
    for model in models:
        error = map_ @ error
        assert np.abs(model - optimum - error[:10]).max() <= 1e-12
    radius = np.abs(np.linalg.eigvals(map_)).max()
    errors = np.linalg.norm(models - optimum, axis=1)
    assert (errors[60] / errors[30]) ** (1 / 30) == pytest.approx(radius, rel=0.05)
    assert 0.5 < radius < 0.9


@pytest.mark.parametrize("steps", [1, 3])
def test_pisas_rate_is_the_spectral_radius_of_its_round(steps: int) -> None:
    """With ``Q = I`` PISA's local steps have length ``1 / (sigma + rho)``, which gives the same map."""
    problem = quadratic()
    sigma, rho = 2.0, 1.5
    map_ = round_map(problem, sigma, local_map(problem, 1 / (sigma + rho), sigma, steps))
    optimum = problem.optimum(problem.alpha())
    algorithm = build("pisa", sigma=sigma, rho=rho, local_steps=steps, batches_per_round=1)
    models = problem.run(algorithm).models(61)
    error = np.concatenate([-optimum, problem.gradients(optimum).ravel()])
    for model in models:
        error = map_ @ error
        assert np.abs(model - optimum - error[:10]).max() <= 1e-12
    radius = np.abs(np.linalg.eigvals(map_)).max()
    errors = np.linalg.norm(models - optimum, axis=1)
    assert (errors[60] / errors[30]) ** (1 / 30) == pytest.approx(radius, rel=0.05)
    assert 0.5 < radius < 0.95


@pytest.mark.parametrize("relaxation", [1.0, 1.5])
def test_douglas_rachford_contracts_at_least_as_fast_as_its_theory(relaxation: float) -> None:
    """With exact proximal maps ``y`` contracts by ``|1 - a/2| + (a/2) delta`` or less in every round.

    This is Giselsson and Boyd's bound, in the norm ``sqrt(sum alpha_i ||y_i||^2)``. 200 local steps are exact
    to rounding.
    """
    problem = quadratic()
    largest = float(np.max(problem.data.ground_truth["lipschitz"]))
    smallest = float(np.min(problem.data.ground_truth["strong-convexity"]))
    sigma = (largest * smallest) ** 0.5
    keys = {"sigma": sigma, "learning_rate": 0.45, "local_steps": 200, "relaxation": relaxation}
    run = problem.run(build("feddr", **keys))
    optimum, alpha = problem.optimum(problem.alpha()), problem.alpha()
    limit = optimum + problem.gradients(optimum) / sigma
    root = (largest / smallest) ** 0.5
    bound = abs(1 - relaxation / 2) + relaxation / 2 * (root - 1) / (root + 1)
    if relaxation == 1:
        assert bound == pytest.approx(root / (1 + root))
    distances = []
    for _ in rounds(run.strategy, run.grid, run.initial, 25):
        states = [run.grid.state(client_id) for client_id in range(NUM_CLIENTS)]
        # y_i = w_i - pi_i / sigma and w_i = z_i - pi_i / sigma.
        y = np.array([(state["z"] - 2 * state["dual"] / sigma).numpy() for state in states if state])
        distances.append(float(np.sqrt(alpha @ ((y - limit) ** 2).sum(1))))
    factors = np.array(distances[1:]) / np.array(distances[:-1])
    assert factors.max() <= bound + 1e-9
    assert bound < 0.95


def test_equal_hessians_have_the_rate_of_the_textbook() -> None:
    """With ``H_i = h I`` and exact local minimisers the rate is ``max(sigma, h) / (sigma + h)``.

    This includes the duals' differences.
    """
    rng = np.random.default_rng(0)
    h, minima, sizes = 0.7, rng.normal(size=(3, 2)), (2, 4, 8)
    eye = np.sqrt(h) * np.sqrt(2) * np.eye(2)
    x = np.concatenate([np.tile(eye, (size // 2, 1)) for size in sizes])
    parts = np.split(np.arange(14), np.cumsum(sizes)[:-1])
    y = np.concatenate([x[part] @ minimum for part, minimum in zip(parts, minima, strict=True)])
    alpha = np.array(sizes) / 14
    for sigma in (0.2, 2.0):
        algorithm = build("fedadmm", sigma=sigma, learning_rate=1 / (h + sigma), local_steps=1)
        run = Run(algorithm, x, y, parts, np.zeros(2))
        models = run.models(12)
        optimum = alpha @ minima
        # The model's modes are 0 and sigma / (sigma + h), those of the duals' differences h / (sigma + h).
        errors = np.linalg.norm(models - optimum, axis=1)
        assert errors[1:8] / errors[:7] == pytest.approx(np.full(7, sigma / (sigma + h)), rel=1e-6)
        duals = np.linalg.norm(run.duals() + h * (optimum - minima))
        run = Run(algorithm, x, y, parts, np.zeros(2))
        run.models(13)
        after = np.linalg.norm(run.duals() + h * (optimum - minima))
        assert after / duals == pytest.approx(max(sigma, h) / (sigma + h), rel=0.02)


# ------------------------------------------------------------------------------------------- identities


@pytest.mark.parametrize("other", ["fedadmm", "fedpd", "feddr"])
def test_with_everyone_in_every_round_these_are_one_algorithm(other: str) -> None:
    """FedDyn, FedADMM, FedPD without skipping and FedDR without relaxation give the same models."""
    problem = quadratic()
    feddyn, models = (problem.run(build(name, lambda_=0.1)).models(20) for name in ("feddyn", other))
    assert np.abs(models - feddyn).max() <= 1e-12


def test_fedgia_is_gradient_descent_where_nobody_or_everybody_might_as_well() -> None:
    """``z_i = w - g / sigma`` without ADMM steps, and for any share of them if ``proximity = sigma``."""
    problem = quadratic()
    w, wanted = np.zeros(10), []
    for _ in range(10):
        w = w - problem.alpha() @ problem.gradients(w) / 1.5
        wanted.append(w)
    for keys in (
        {"admm_share": 0.0, "proximity": 3.0},
        {"admm_share": 1.0, "proximity": 1.5},
        {"proximity": 1.5},
    ):
        models = problem.run(build("fedgia", sigma=1.5, **keys)).models(10)
        assert np.abs(models - np.array(wanted)).max() <= 1e-12


def test_fedgia_takes_one_gradient_however_many_steps() -> None:
    run = quadratic().run(build("fedgia", admm_share=0.5, local_steps=7))
    run.models(3)
    assert [finished.train_metrics["local-steps"] for finished in run.rounds] == [NUM_CLIENTS] * 3


def test_one_step_of_iceadmm_and_iiadmm_is_the_same() -> None:
    problem = quadratic()
    one, other = (problem.run(build(name, local_steps=1), 0.5).models(20) for name in ("iceadmm", "iiadmm"))
    assert np.abs(one - other).max() <= 1e-12


# --------------------------------------------------------------------------------------- rounds by hand

F = Fraction

# Client 0 has one sample and f_0 = (w - 4)^2 / 2, client 1 three and f_1 = (w + 2)^2 / 2; w = 2 at first.
# g = (w - 4, w + 2), alpha = (1/4, 3/4), the optimum is -1/2.


def two(name: str, num_rounds: int, **keys: Any) -> tuple[list[float], list[float]]:
    parts = [np.array([0]), np.array([1, 2, 3])]
    run = Run(build(name, **keys), np.ones((4, 1)), np.array([4.0, -2, -2, -2]), parts, [[2.0]])
    models = run.models(num_rounds)
    return models[:, 0].tolist(), run.duals()[:, 0].tolist()


def near(*wanted: F | int) -> Any:
    return pytest.approx([float(value) for value in wanted], rel=1e-14, abs=1e-14)


@pytest.mark.parametrize("name", ["feddyn", "fedadmm", "fedpd", "feddr"])
def test_two_rounds_of_two_local_steps(name: str) -> None:
    """``sigma = 1``, steps of length 1/4, two per round; ``d = v - w``, ``d <- d - (g(w) + pi + 2 d) / 4``.

    Two steps from 0 are ``d = -(3/8) (g + pi)``. Round 1, ``w = 2``: ``g = (-2, 4)``, ``d = (3/4, -3/2) = pi``;
    ``z = w + d + pi = (7/2, -1)``, ``w = 7/8 - 3/4 = 1/8``.
    Round 2: ``g = (-31/8, 17/8)``, ``g + pi = (-25/8, 5/8)``, ``d = (75/64, -15/64)``, ``pi = (123/64, -111/64)``;
    ``z = (1/8 + 198/64, 1/8 - 126/64) = (103/32, -59/32)``, ``w = (103 - 177)/128 = -37/64``.
    """
    models, duals = two(name, 2, learning_rate=0.25, local_steps=2)
    assert models == near(F(1, 8), F(-37, 64))
    assert duals == near(F(123, 64), F(-111, 64))


def test_feddr_with_relaxation() -> None:
    """``relaxation = 3/2``, ``sigma = 1``, one step of length 1/2 from ``c``: ``d = -(g(c) + pi) / 2``.

    Round 1, ``c = w = 2``: ``d = (1, -2) = pi``, ``w_i = (3, 0)``, ``z = (4, -2)``, ``w = 1 - 3/2 = -1/2``.
    Round 2: ``c = w_i + 3/2 (w - w_i) = (3 - 21/4, -3/4) = (-9/4, -3/4)``; ``g(c) + pi = (-25/4 + 1, 5/4 - 2) =
    (-21/4, -3/4)``; ``d = (21/8, 3/8)``; ``pi = (29/8, -13/8)``; ``w_i = (3/8, -3/8)``; ``z = (4, -2)``; ``w = -1/2``.
    """
    models, duals = two("feddr", 2, relaxation=1.5, learning_rate=0.5, local_steps=1)
    assert models == near(F(-1, 2), F(-1, 2))
    assert duals == near(F(29, 8), F(-13, 8))


def test_fedpd_goes_on_alone() -> None:
    """The coin of seed 0 skips round 2; one step of length 1/2, ``sigma = 1``: ``d = -(g(c) + pi) / 2``.

    Round 1, ``c = 2``: ``d = (1, -2) = pi``, ``z = (4, -2)``, ``w = -1/2``.
    Round 2, ``c = -1/2``, skipped: ``g = (-9/2, 3/2)``, ``g + pi = (-7/2, -1/2)``, ``d = (7/4, 1/4)``,
    ``pi = (11/4, -7/4)``, ``c+ = c + d + pi = (4, -2)``; ``w`` stays.
    Round 3, ``c = (4, -2)``, skipped: ``g = 0``, ``d = -pi/2 = (-11/8, 7/8)``, ``pi = (11/8, -7/8)``, ``c+ = (4, -2)``.
    Round 4: ``d = (-11/16, 7/16)``, ``pi = (11/16, -7/16)``, ``z = (4, -2)``, ``w = -1/2``.
    """
    keys = {"skip_probability": 0.5, "learning_rate": 0.5, "local_steps": 1}
    algorithm = build("fedpd", **keys)
    assert [algorithm.local_update.skips(t) for t in (1, 2, 3, 4)] == [False, True, True, False]
    models, duals = two("fedpd", 4, **keys)
    assert models == near(*[F(-1, 2)] * 4)
    assert duals == near(F(11, 16), F(-7, 16))


def test_iceadmm_by_hand() -> None:
    """``sigma = proximity = 1``, two local steps: ``d <- d - (g + pi + d) / 2``, ``pi <- pi + d``; ``d = w_i - w``.

    Round 1, ``w = 2``: ``d = (1, -2) = pi``. Then ``g = (-1, 2)``: ``d = (1 - 1/2, -2 + 1) = (1/2, -1)``,
    ``pi = (3/2, -3)``; ``z = w + d + pi = (4, -2)``, ``w = -1/2``.
    Round 2, ``w_i = (5/2, 1)`` goes on, ``d = (3, 3/2)``: ``g + pi + d = (-3/2 + 3/2 + 3, 3 - 3 + 3/2) = (3, 3/2)``;
    ``d = (3/2, 3/4)``, ``pi = (3, -9/4)``. Then ``w_i = (1, 1/4)``: ``g + pi + d = (-3 + 3 + 3/2, 9/4 - 9/4 + 3/4)``;
    ``d = (3/4, 3/8)``, ``pi = (15/4, -15/8)``; ``z = (4, -2)``, ``w = -1/2``.
    """
    models, duals = two("iceadmm", 2, proximity=1.0, local_steps=2)
    assert models == near(F(-1, 2), F(-1, 2))
    assert duals == near(F(15, 4), F(-15, 8))


def test_iiadmm_by_hand() -> None:
    """``sigma = 1``, ``proximity = 3``, two local steps ``d <- d - (g + pi + d) / 4``, then ``pi <- pi + d``.

    Round 1, ``w = 2``: ``d = (1/2, -1)``; ``g + d = (-3/2 + 1/2, 3 - 1) = (-1, 2)``, ``d = (3/4, -3/2) = pi``;
    ``w_i = (11/4, 1/2)``, ``z = (7/2, -1)``, ``w = 1/8``.
    Round 2: ``d = (21/8, 3/8)``; ``g + pi + d = (-5/4 + 3/4 + 21/8, 5/2 - 3/2 + 3/8) = (17/8, 11/8)``;
    ``d = (67/32, 1/32)``; ``w_i = (71/32, 5/32)``; ``g + pi + d = (-57/32 + 24/32 + 67/32, 69/32 - 48/32 + 1/32) =
    (34/32, 22/32)``; ``d = (117/64, -9/64)``; ``pi = (165/64, -105/64)``; ``z = 1/8 + (282/64, -114/64) =
    (145/32, -53/32)``; ``w = (145 - 159)/128 = -7/64``.
    """
    models, duals = two("iiadmm", 2, proximity=3.0, local_steps=2)
    assert models == near(F(1, 8), F(-7, 64))
    assert duals == near(F(165, 64), F(-105, 64))


def test_fedgia_by_hand() -> None:
    """``sigma = 1``, ``proximity = 3``, all take two ADMM steps: ``p = pi + g`` is multiplied by 3/4 twice.

    Round 1, ``w = 2``: ``p = g = (-2, 4)``; second drift ``-(3/4) p / 4 = (3/8, -3/4)``; ``pi = (9/16) p - g =
    (7/8, -7/4)``; ``z = w + (5/4, -5/2) = (13/4, -1/2)``; ``w = 13/16 - 3/8 = 7/16``.
    Round 2: ``g = (-57/16, 39/16)``, ``p = (-43/16, 11/16)``; drift ``-(3/16) p = (129/256, -33/256)``;
    ``pi = (9/16) p - g = (525/256, -525/256)``; ``z = 7/16 + (654, -558)/256 = (383/128, -223/128)``;
    ``w = (383 - 669)/512 = -143/256``.
    """
    models, duals = two("fedgia", 2, proximity=3.0, local_steps=2, admm_share=1.0)
    assert models == near(F(7, 16), F(-143, 256))
    assert duals == near(F(525, 256), F(-525, 256))


def test_iiadmms_server_keeps_the_clients_duals() -> None:
    """The server's duals equal the clients' to rounding, with half of the clients in each round."""
    run = quadratic().run(build("iiadmm"), 0.5)
    run.models(20)
    server = run.strategy.server
    assert server is not None
    assert np.abs(server["dual"].numpy() - run.duals()).max() <= 1e-12


def test_feddyns_server_keeps_the_mean_of_the_clients_duals() -> None:
    run = quadratic().run(build("feddyn"), 0.5)
    run.models(20)
    server = run.strategy.server
    assert server is not None
    assert np.abs(server["dual"].numpy() - quadratic().alpha() @ run.duals()).max() <= 1e-12


# ------------------------------------------------------------------------------------------------ digits


@pytest.mark.parametrize("name", FAMILY)
def test_the_defaults_train_the_digits_with_a_third_of_the_clients(name: str) -> None:
    """Training does not diverge and learns, with ``label-dirichlet`` 0.3 and three of ten clients a round."""
    result = fedpisa.run(
        {
            "algorithm": name,
            "fraction-train": 0.3,
            "dirichlet-alpha": 0.3,
            "num-server-rounds": 25,
            "eval-every": 25,
        }
    )
    assert result.status == "finished"
    assert result.history["test_accuracy"].iloc[-1] > 0.5
