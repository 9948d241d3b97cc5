"""PISA with ``absent = "fresh"``: its fixed point, its optimum, its rate and what the server knows of the duals."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedpisa import families
from fedpisa.clients.base import Arrays, MiniBatches
from fedpisa.clients.pisa import IncrementalPisaUpdate, PisaUpdate
from fedpisa.simulation.rounds import rounds
from fedpisa.strategies.base import Cohort
from fedpisa.strategies.pisa import Pisa
from fedpisa.tasks.layout import ParamLayout
from tests.exactness.test_primal_dual import Quadratic, local_map, relative

P = 4
"""Parameters of the random quadratics."""
LAYOUT = ParamLayout.of([("weight", torch.zeros(2, 2))])
RULES = {name: found.factory.exact for name, found in families.available("preconditioner").items()}
"""Preconditioners, and whether each is exact."""
AMPLIFIES = {"newton-schulz": 1e5, "spectral": 1e5}
"""Rules that multiply rounding errors: both act on singular values that can be close to zero."""
FULL = MiniBatches(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.tensor(7))


def build(name: str = "pisa", **keys: object) -> Any:
    """Return an algorithm of PISA's family, by default with ``absent = "fresh"``."""
    component = families.find("algorithm", name)
    wanted = {"absent": "fresh", "batch-size": "full", "sigma": 2.0, "rho": 0.5}
    wanted |= {key.rstrip("_").replace("_", "-"): value for key, value in keys.items()}
    own = families.keys_of(component, wanted)
    return families.build(component, {key: value for key, value in wanted.items() if key in own})


# --------------------------------------------------------------------- random quadratics by pure functions


@dataclass(frozen=True)
class QuadraticGradient:
    """The gradient of ``(v - minimum)' hessian (v - minimum) / 2``."""

    hessian: Tensor
    minimum: Tensor
    layout: ParamLayout = LAYOUT

    def __call__(self, v_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        g_P = self.hessian @ (v_P - self.minimum)
        return g_P @ (v_P - self.minimum) / 2, g_P

    def each(self, v_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        loss, g_P = self(v_P, batch)
        return loss, g_P[None]

    def with_hessian(
        self, v_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return *self(v_P, batch), vectors_RP @ self.hessian


@dataclass
class Federation:
    """An algorithm on clients with random quadratics and sizes, without engine and messages."""

    algorithm: Any
    num_clients: int = 6
    seed: int = 0
    server: Arrays = field(init=False)
    finished: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        bases = np.linalg.qr(rng.normal(size=(self.num_clients, P, P)))[0]
        self.hessians = np.einsum(
            "nij,nj,nkj->nik", bases, rng.uniform(0.3, 1.5, (self.num_clients, P)), bases
        )
        self.minima = rng.normal(size=(self.num_clients, P))
        self.sizes = rng.integers(1, 50, self.num_clients)
        start = torch.from_numpy(rng.normal(size=P))
        self.states: list[Arrays] = [self.algorithm.local_update.init(start)] * self.num_clients
        self.server = self.algorithm.init(start, LAYOUT)

    @property
    def alpha(self) -> np.ndarray:
        raw = self.sizes if self.algorithm.weighting == "num-examples" else np.ones(self.num_clients)
        return raw / raw.sum()

    def round(self, ids: Collection[int], lost: Collection[int] = ()) -> np.ndarray:
        """Run a round of some clients, of whom some lose the reply and take it back; return the model."""
        self.finished += 1
        down = self.algorithm.broadcast(self.server)
        update = self.algorithm.local_update.at_round(self.finished).for_broadcast(down)
        uploads = []
        arrived = sorted(set(ids) - set(lost))
        for i in arrived:
            gradient = QuadraticGradient(*map(torch.from_numpy, (self.hessians[i], self.minima[i])))
            work = update.start(down, self.states[i])
            for _ in range(self.algorithm.local_update.local_steps):
                work = update.step(gradient, down, self.states[i], work, FULL)
            upload, self.states[i], _ = update.finish(down, self.states[i], work)
            uploads.append(upload)
        if arrived:
            sizes_S = torch.tensor(self.sizes[arrived], dtype=torch.float64)
            cohort = Cohort(torch.tensor(arrived), sizes_S, self.finished, self.num_clients, LAYOUT)
            stacked = {name: torch.stack([upload[name] for upload in uploads]) for name in uploads[0]}
            self.server = self.algorithm.step(self.server, stacked, cohort)
        return self.params

    @property
    def params(self) -> np.ndarray:
        return self.server["params"].numpy().copy()

    def duals(self) -> np.ndarray:
        return np.array([state["dual"].numpy() for state in self.states])

    def optimum(self) -> np.ndarray:
        lambda_, mu = self.algorithm.lambda_, self.algorithm.local_update.mu
        pooled = np.einsum("n,nij->ij", self.alpha, self.hessians) + (lambda_ + mu) * np.eye(P)
        return np.linalg.solve(pooled, np.einsum("n,nij,nj->i", self.alpha, self.hessians, self.minima))


cohorts = st.lists(st.sets(st.integers(0, 5), min_size=1), min_size=1, max_size=8)
penalties = st.fixed_dictionaries(
    {
        "sigma": st.floats(1.0, 5.0),
        "rho": st.floats(0.0, 5.0),
        "gamma": st.sampled_from([1.0, 0.9, 0.75]),
        "gamma_every": st.integers(1, 3),
        "lambda_": st.sampled_from([0.0, 0.1, 1.0]),
        "mu": st.sampled_from([0.0, 0.2]),
        "local_steps": st.integers(1, 3),
        "weighting": st.sampled_from(["num-examples", "uniform"]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(list(RULES)), keys=penalties, seed=st.integers(0, 99), num_rounds=st.integers(1, 5)
)
def test_with_all_clients_it_is_keep_and_drop(
    rule: str, keys: dict[str, Any], seed: int, num_rounds: int
) -> None:
    """(2.9) has the mean of ``sigma w_i`` and the mean of ``pi_i``, so the models agree to rounding."""
    one, *others = (
        Federation(build(preconditioner=rule, absent=absent, **keys), seed=seed)
        for absent in ("fresh", "keep", "drop")
    )
    for _ in range(num_rounds):
        w = one.round(range(6))
        for other in others:
            assert relative(w, other.round(range(6))) <= 1e-12 * AMPLIFIES.get(rule, 1)
    assert all(relative(one.duals(), other.duals()) <= 1e-11 * AMPLIFIES.get(rule, 1) for other in others)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(list(RULES)),
    keys=penalties,
    asked=cohorts,
    losses=st.lists(st.sets(st.integers(0, 5), max_size=2), min_size=8, max_size=8),
)
def test_the_server_knows_the_mean_of_the_duals(
    rule: str, keys: dict[str, Any], asked: list[set[int]], losses: list[set[int]]
) -> None:
    """``Pi = sum_i alpha_i pi_i`` in each round, for any cohorts, lost replies and penalties that change.

    A client that was not seen yet has a zero dual and counts with the mean weight of the others.
    """
    federation = Federation(build(preconditioner=rule, **keys))
    seen = set[int]()
    for ids, lost in zip(asked, losses, strict=False):
        federation.round(ids, lost)
        seen |= ids - lost
        if seen:
            mass = federation.alpha[sorted(seen)]
            total = mass.mean() * federation.num_clients
            duals = federation.duals()[sorted(seen)]
            wanted = mass @ duals / total
            np.testing.assert_allclose(
                federation.server["dual"].numpy(), wanted, rtol=1e-12, atol=1e-13 * np.abs(duals).max()
            )


@settings(max_examples=60, deadline=None)
@given(rule=st.sampled_from([rule for rule, exact in RULES.items() if exact]), keys=penalties, asked=cohorts)
def test_the_optimum_stays_for_all_cohorts_and_penalties(
    rule: str, keys: dict[str, Any], asked: list[set[int]]
) -> None:
    """``w = w*``, ``pi_i = -grad F_i(w*)``, ``Pi = lambda w*`` is a fixed point of each round."""
    federation = Federation(build(preconditioner=rule, **keys))
    optimum, mu = federation.optimum(), federation.algorithm.local_update.mu
    duals = -np.einsum("nij,nj->ni", federation.hessians, optimum - federation.minima) - mu * optimum
    mean = federation.alpha @ duals
    np.testing.assert_allclose(mean, federation.algorithm.lambda_ * optimum, atol=1e-13)
    federation.states = [
        {**state, "dual": torch.from_numpy(dual)}
        for state, dual in zip(federation.states, duals, strict=True)
    ]
    federation.server = {
        "params": torch.from_numpy(optimum),
        "dual": torch.from_numpy(mean),
        "num-examples": torch.tensor(federation.sizes, dtype=torch.float64),
    }
    for ids in asked:
        assert relative(federation.round(ids), optimum) <= 1e-12
    assert relative(federation.duals(), duals) <= 1e-11


def test_the_keys_choose_the_clients_upload() -> None:
    """The client's part follows ``absent``, also if a key is replaced, and has the same keys."""
    fresh = Pisa(PisaUpdate(sigma=0.5), absent="fresh")
    assert fresh.local_update == IncrementalPisaUpdate(sigma=0.5)
    assert replace(fresh, lambda_=1.0).local_update == fresh.local_update
    assert replace(fresh, absent="keep") == Pisa(PisaUpdate(sigma=0.5))
    assert isinstance(fresh.local_update.at_round(3), IncrementalPisaUpdate)


# ------------------------------------------------------------------------------------ optimum on an engine


@cache
def twenty() -> Quadratic:
    """Return 20 clients of unequal sizes, whose largest curvature is below 2."""
    return Quadratic(20, condition=3.0, dimension=6)


@pytest.mark.parametrize("lambda_", [0.0, 0.1])
@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(("fraction", "num_rounds"), [(0.1, 340), (0.3, 120), (0.5, 90)])
@pytest.mark.parametrize("name", ["pisa", "sisa"])
def test_the_weighted_optimum_is_reached_with_few_clients_a_round(
    name: str, fraction: float, num_rounds: int, local_steps: int, lambda_: float
) -> None:
    """It is the ``n_i``-weighted one, with ``pi_i = -grad F_i`` and ``Pi = lambda w``, from O(P) on the server."""
    problem = twenty()
    assert len(set(problem.sizes)) == 8
    run = problem.run(build(name, local_steps=local_steps, lambda_=lambda_), fraction)
    model = run.models(num_rounds)[-1]
    wanted = problem.optimum(problem.alpha(), lambda_)
    assert relative(model, wanted) <= 1e-8
    assert relative(run.duals(), -problem.gradients(wanted)) <= 1e-7
    server = run.strategy.server
    assert server is not None
    assert {key: tuple(value.shape) for key, value in server.items()} == {
        "params": (6,), "dual": (6,), "num-examples": (20,),
    }  # fmt: skip
    assert np.abs(server["dual"].numpy() - lambda_ * wanted).max() <= 1e-8
    assert np.abs(server["dual"].numpy() - problem.alpha() @ run.duals()).max() <= 1e-13


@pytest.mark.parametrize("rule", [rule for rule, exact in RULES.items() if exact])
def test_all_exact_preconditioners_reach_it(rule: str) -> None:
    problem = Quadratic(5, condition=3.0, dimension=6)
    algorithm = build(preconditioner=rule, gamma=0.9, gamma_until=5, weighting="uniform")
    model = problem.run(algorithm, 0.4).models(140)[-1]
    assert relative(model, problem.optimum(problem.alpha("uniform"))) <= 1e-8


# ---------------------------------------------------------------------------------------------------- rate


def cohort_map(
    problem: Quadratic, sigma: float, lambda_: float, local: np.ndarray, cohort: Sequence[int]
) -> np.ndarray:
    """Return a round's linear map of ``(w - w*, pi_1 - pi_1*, ...)`` with the clients of a cohort."""
    alpha, (n, d) = problem.alpha(), problem.minima.shape
    eye = np.eye((n + 1) * d).reshape(n + 1, d, (n + 1) * d)
    w, duals = eye[0], [*eye[1:]]
    a = alpha[cohort] / alpha[cohort].sum()
    moved = w
    for share, i in zip(a, cohort, strict=True):
        drift = -local[i] @ (problem.hessians[i] @ w + duals[i])
        duals[i] = duals[i] + sigma * drift
        moved = moved + share * drift
    total = sigma * moved + sum(weight * dual for weight, dual in zip(alpha, duals, strict=True))
    return np.concatenate([total / (sigma + lambda_), *duals])


@pytest.mark.parametrize("lambda_", [0.0, 0.1])
@pytest.mark.parametrize("local_steps", [1, 3])
def test_the_rate_is_the_spectral_radius_of_a_cycle(local_steps: int, lambda_: float) -> None:
    """With cohorts that take turns, the error follows an independent linear map, at its spectral radius.

    After the first cycle all clients have been seen. Nodes that are not connected yet join in later rounds.
    """
    problem, turns = Quadratic(8), [[0, 1], [2, 3, 4], [5, 6, 7]]
    sigma, rho = 2.0, 1.0
    algorithm = build(sigma=sigma, rho=rho, local_steps=local_steps, lambda_=lambda_)
    run = problem.run(algorithm)
    nodes, whose = run.grid.get_node_ids(), cycle(turns)
    run.grid.get_node_ids = lambda: [nodes[i] for i in next(whose)]  # type: ignore[method-assign]
    local = local_map(problem, 1 / (sigma + rho), sigma, local_steps)
    maps = [cohort_map(problem, sigma, lambda_, local, cohort) for cohort in turns]
    wanted = problem.optimum(problem.alpha(), lambda_)
    errors, expected = [], None
    for finished, map_ in zip(rounds(run.strategy, run.grid, run.initial, 60), cycle(maps), strict=False):
        error = finished.arrays["params"].numpy() - wanted
        errors.append(float(np.linalg.norm(error)))
        if finished.server_round == 3:
            expected = np.concatenate([error, (run.duals() + problem.gradients(wanted)).ravel()])
        elif expected is not None:
            expected = map_ @ expected
            assert np.abs(error - expected[:10]).max() <= 1e-12
    radius = np.abs(np.linalg.eigvals(maps[2] @ maps[1] @ maps[0])).max()
    assert 0.2 < radius < 0.95
    assert (errors[59] / errors[29]) ** (1 / 10) == pytest.approx(radius, rel=0.05)


def test_keep_needs_more_rounds() -> None:
    """With a tenth of the clients in a round, the stale ``z_i`` of the others hold the model back."""
    problem = twenty()
    wanted = problem.optimum(problem.alpha())
    error = {
        absent: relative(problem.run(build(absent=absent), 0.1).models(120)[-1], wanted)
        for absent in ("fresh", "keep", "drop")
    }
    assert error["fresh"] < 0.1 * error["keep"]
    assert error["drop"] > 1e-2
