"""Which relatives of local SGD reach the optimum, and where the others end, in closed form.

Client i has ``f_i(w) = 1/2 (w - m_i)' H_i (w - m_i)``, known from `fedpisa.datasets.synthetic.quadratic`.
With full batches, K local steps of length ``eta`` on ``f_i + mu/2 ||v - w||^2`` from ``w`` end at
``v = w - P_i H_i (w - m_i)``, ``P_i = eta sum_{k<K} (I - eta (H_i + mu I))^k``, because the proximal term
vanishes at ``w``. So the fixed point of ``w <- sum_i a_i v_i`` solves ``sum_i a_i P_i H_i (w - m_i) = 0``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fedpisa import families
from fedpisa.clients.client import Client
from fedpisa.clients.scaffnew import GeometricSteps
from fedpisa.datasets.client_data import ClientData
from fedpisa.families.data import load
from fedpisa.flower.client_app import make_client_app
from fedpisa.flower.compat import to_record
from fedpisa.server.algorithm_strategy import AlgorithmStrategy
from fedpisa.simulation.loop import LoopGrid
from fedpisa.simulation.rounds import rounds
from fedpisa.simulation.stacked.grid import VmapGrid
from fedpisa.tasks.supervised import supervised

N, D, ETA, K = 5, 4, 0.1, 5
SIZES = np.array([D * (1 + i % 8) for i in range(N)])
ALPHA = SIZES / SIZES.sum()
UNIFORM = np.full(N, 1 / N)


@pytest.fixture(scope="module")
def quadratic() -> Any:
    return load("quadratic", seed=3, num_clients=N, dimension=D, condition=5.0)


def hessians(data: Any) -> NDArray[np.float64]:
    parts = [data.x_train[data.groups == i] for i in range(N)]
    return np.array([x.T @ x / len(x) for x in parts])


class Lab:
    """A linear model on the quadratic's clients, trained by one algorithm."""

    def __init__(
        self, data: Any, name: str, fraction: float = 1.0, engine: str = "vmap", **keys: Any
    ) -> None:
        component = families.find("algorithm", name)
        values = {key.replace("_", "-"): value for key, value in keys.items()}
        self.algorithm = families.build(component, {"batch-size": "full", "learning-rate": ETA, **values})
        module = nn.Linear(D, 1, bias=False).double()
        nn.init.zeros_(module.weight)
        self.task = supervised(module, None)
        partition = [np.flatnonzero(data.groups == i) for i in range(N)]
        self.data = ClientData.of(data.x_train, data.y_train, partition, torch.float64)
        update = self.algorithm.local_update
        if engine == "vmap":
            self.grid: Any = VmapGrid(self.task, update, self.data, 0)
        else:
            app = make_client_app(lambda context: self.client(int(context.node_config["partition-id"])))
            self.grid = LoopGrid(app, N)
        self.strategy = AlgorithmStrategy(self.algorithm, self.task.layout, fraction_train=fraction)

    def client(self, client_id: int) -> Client:
        return Client(self.task, self.algorithm.local_update, self.data.only(client_id), client_id, 0)

    def run(self, num_rounds: int) -> NDArray[np.float64]:
        """Return the model after the last round."""
        start = to_record({"params": self.task.initial_params()})
        *_, last = rounds(self.strategy, self.grid, start, num_rounds)
        return last.arrays["params"].numpy()

    def server(self) -> Mapping[str, NDArray[np.float64]]:
        assert self.strategy.server is not None
        return {name: value.numpy().copy() for name, value in self.strategy.server.items()}

    def state(self, name: str) -> NDArray[np.float64]:
        states = [self.grid.state(i) for i in range(N)]
        return np.array([state[name].numpy() if state else np.zeros(D) for state in states])


def fixed_point(
    data: Any, weights: NDArray[np.float64], steps: Any = K, mu: float = 0.0, eta: float = ETA
) -> NDArray[np.float64]:
    """Return the solution of ``sum_i weights_i P_i H_i (w - m_i) = 0``; ``steps`` may differ by client."""
    left, right = np.zeros((D, D)), np.zeros(D)
    every = np.broadcast_to(steps, N)
    for weight, h, m, count in zip(
        weights, hessians(data), data.ground_truth["client-optima"], every, strict=True
    ):
        shrink = np.eye(D) - eta * (h + mu * np.eye(D))
        p = eta * sum(np.linalg.matrix_power(shrink, k) for k in range(count))
        left += weight * p @ h
        right += weight * p @ h @ m
    return np.linalg.solve(left, right)


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(a - b))


# -------------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_scaffold_reaches_the_optimum(quadratic: Any, momentum: float) -> None:
    """SCAFFOLD reaches the ``n_i``-weighted optimum.

    There ``c_i = grad f_i`` and ``c = sum alpha_i c_i = 0``.
    """
    lab = Lab(quadratic, "scaffold", local_steps=K, momentum=momentum)
    optimum = quadratic.ground_truth["optimum"]
    assert distance(lab.run(400), optimum) < 1e-8
    gradients = [
        h @ (optimum - m)
        for h, m in zip(hessians(quadratic), quadratic.ground_truth["client-optima"], strict=True)
    ]
    assert distance(lab.state("control"), np.array(gradients)) < 1e-8
    assert np.abs(lab.server()["control"]).max() < 1e-8


@pytest.mark.parametrize(
    ("name", "keys"), [("scaffold", {"local_steps": K}), ("scaffnew", {"probability": 0.3})]
)
def test_a_few_clients_per_round_reach_the_optimum_too(
    quadratic: Any, name: str, keys: dict[str, Any]
) -> None:
    """Two of five clients of unequal sizes per round reach the optimum."""
    assert (
        distance(Lab(quadratic, name, fraction=0.4, **keys).run(900), quadratic.ground_truth["optimum"])
        < 1e-8
    )


@pytest.mark.parametrize("name", ["scaffold", "scaffnew"])
def test_uniform_weights_reach_the_papers_optimum(quadratic: Any, name: str) -> None:
    steps = {"local_steps": K} if name == "scaffold" else {"probability": 0.2}
    got = Lab(quadratic, name, weighting="uniform", **steps).run(400)
    h, m = hessians(quadratic), quadratic.ground_truth["client-optima"]
    wanted = np.linalg.solve(h.sum(0), np.einsum("nij,nj->i", h, m))
    assert distance(wanted, quadratic.ground_truth["optimum"]) > 0.01
    assert distance(got, wanted) < 1e-8


def test_scaffnew_reaches_the_optimum(quadratic: Any) -> None:
    """Scaffnew reaches the ``n_i``-weighted optimum, where ``h_i = grad f_i``.

    In every round ``sum alpha_i h_i = 0``.
    """
    lab = Lab(quadratic, "scaffnew", probability=0.2)
    optimum = quadratic.ground_truth["optimum"]
    stiffness = 0.2 / ETA
    for num_rounds in (1, 3):
        w = lab.run(num_rounds)
        h = stiffness * (w - lab.state("z"))
        assert np.abs(ALPHA @ h).max() < 1e-13
    w = Lab(quadratic, "scaffnew", probability=0.2)
    final = w.run(400)
    assert distance(final, optimum) < 1e-8
    gradients = [
        g @ (optimum - m)
        for g, m in zip(hessians(quadratic), quadratic.ground_truth["client-optima"], strict=True)
    ]
    assert distance(stiffness * (final - w.state("z")), np.array(gradients)) < 1e-7


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_scaffnew_contracts_at_least_as_fast_as_its_theory(quadratic: Any, probability: float) -> None:
    """ProxSkip's Theorem 3.6, in the inner product ``sum_i alpha_i <., .>``, per local step.

    ``E Psi <= (1 - min(gamma m, p^2))^steps Psi_0`` for ``gamma <= 1/L``, where ``Psi`` is
    ``sum_i alpha_i (||x_i - w*||^2 + (gamma/p)^2 ||h_i - grad f_i(w*)||^2)``. ``(1 - ...)^-steps Psi`` is a
    supermartingale: with probability 99 % it never exceeds 100 times its start.
    """
    curvatures = np.linalg.eigvalsh(hessians(quadratic))
    gamma, m = 1 / curvatures.max(), curvatures.min()
    optimum = quadratic.ground_truth["optimum"]
    slopes = np.einsum("nij,nj->ni", hessians(quadratic), optimum - quadratic.ground_truth["client-optima"])
    start = optimum @ optimum + (gamma / probability) ** 2 * ALPHA @ (slopes**2).sum(1)
    num_rounds = 60
    lab = Lab(quadratic, "scaffnew", probability=probability, learning_rate=float(gamma))
    w, steps = lab.run(num_rounds), 0
    for server_round in range(1, num_rounds + 1):
        plan = GeometricSteps("full", probability).draw(SIZES, np.arange(N), server_round, 0)
        steps += int(plan.steps_S[0])
    bound = (1 - min(gamma * m, probability**2)) ** steps * start
    assert bound < 1e-3 * start
    h = probability / gamma * (w - lab.state("z"))
    psi = distance(w, optimum) ** 2 + (gamma / probability) ** 2 * ALPHA @ ((h - slopes) ** 2).sum(1)
    assert psi <= 100 * bound


def test_scaffolds_rate_is_the_spectral_radius_of_its_round(quadratic: Any) -> None:
    """With all clients a round is a linear map of ``(w - w*, c_1 - g_1, ..., c_N - g_N)``.

    From errors ``e`` and ``d_i``, K steps along ``H_i (v - w*) + d - d_i`` with ``d = sum_j alpha_j d_j``
    end at ``v_i - w* = S_i e - P_i (d - d_i)``, ``S_i = (I - eta H_i)^K``;
    ``d_i`` becomes ``d_i - d + (w - v_i) / (K eta)``.
    """
    powers, sums = [], []
    for h in hessians(quadratic):
        shrink = np.eye(D) - ETA * h
        powers.append(np.linalg.matrix_power(shrink, K))
        sums.append(ETA * sum(np.linalg.matrix_power(shrink, k) for k in range(K)))
    size = D * (N + 1)
    columns = []
    for unit in np.eye(size):
        e, d_i = unit[:D], unit[D:].reshape(N, D)
        d = ALPHA @ d_i
        v = np.array([s @ e - p @ (d - own) for s, p, own in zip(powers, sums, d_i, strict=True)])
        columns.append(np.concatenate([ALPHA @ v, (d_i - d + (e - v) / (K * ETA)).ravel()]))
    radius = np.abs(np.linalg.eigvals(np.array(columns).T)).max()
    assert 0.5 < radius < 0.99
    near, far = (
        distance(Lab(quadratic, "scaffold", local_steps=K).run(t), quadratic.ground_truth["optimum"])
        for t in (60, 100)
    )
    assert (far / near) ** (1 / 40) == pytest.approx(radius, abs=0.01)


# ------------------------------------------------------------------------------------------------- bias


@pytest.mark.parametrize(
    ("name", "weights", "keys", "mu"),
    [
        ("fedavg", ALPHA, {}, 0.0),
        ("localsgd", UNIFORM, {}, 0.0),
        ("fedprox", ALPHA, {"proximal_mu": 0.0}, 0.0),
        ("fedprox", ALPHA, {"proximal_mu": 0.5}, 0.5),
        ("fedprox", ALPHA, {"proximal_mu": 2.0}, 2.0),
        ("fednova", ALPHA, {}, 0.0),
        ("fednova", UNIFORM, {"weighting": "uniform"}, 0.0),
    ],
)
def test_the_others_end_at_their_own_fixed_point(
    quadratic: Any, name: str, weights: NDArray[np.float64], keys: dict[str, Any], mu: float
) -> None:
    got = Lab(quadratic, name, local_steps=K, **keys).run(400)
    wanted = fixed_point(quadratic, weights, mu=mu)
    assert distance(got, wanted) < 1e-10
    assert distance(wanted, quadratic.ground_truth["optimum"]) > 1e-2
    assert distance(got, quadratic.ground_truth["optimum"]) == pytest.approx(
        distance(wanted, quadratic.ground_truth["optimum"]), rel=1e-6
    )


def test_one_step_has_no_bias(quadratic: Any) -> None:
    """With one local step all four are gradient descent and reach the optimum."""
    for name in ("fedavg", "fedprox", "fednova", "scaffold"):
        assert (
            distance(
                Lab(quadratic, name, local_steps=1, learning_rate=0.5).run(400),
                quadratic.ground_truth["optimum"],
            )
            < 1e-8
        ), name


def test_a_pull_to_the_global_model_makes_the_bias_smaller(quadratic: Any) -> None:
    biases = [
        distance(fixed_point(quadratic, ALPHA, mu=mu), quadratic.ground_truth["optimum"])
        for mu in (0.0, 1.0, 4.0)
    ]
    assert biases[0] > biases[1] > biases[2] > 0


# --------------------------------------------------------------------------------- FedNova: unequal steps


class Repeated:
    """Clients whose samples are all equal, so that mini-batches are exact and K is ``n_i``.

    The model has one weight, and ``f_i(w) = h_i/2 (w - m_i)^2``.
    """

    sizes = (1, 4, 8)
    h = np.array([0.5, 1.0, 0.8])
    m = np.array([3.0, -1.0, 0.5])

    @property
    def alpha(self) -> NDArray[np.float64]:
        return np.array(self.sizes) / sum(self.sizes)

    @property
    def optimum(self) -> float:
        return float(self.alpha @ (self.h * self.m) / (self.alpha @ self.h))

    def end(self, name: str, eta: float, num_rounds: int, momentum: float = 0.0) -> float:
        x = np.repeat(np.sqrt(self.h), self.sizes)[:, None]
        y = np.repeat(np.sqrt(self.h) * self.m, self.sizes)
        module = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(module.weight)
        task = supervised(module, None)
        partition = np.split(np.arange(len(y)), np.cumsum(self.sizes)[:-1])
        values = {"batch-size": 1, "learning-rate": eta, "momentum": momentum}
        algorithm = families.build(families.find("algorithm", name), values)
        data = ClientData.of(x, y, partition, torch.float64)
        grid = VmapGrid(task, algorithm.local_update, data, 0)
        start = to_record({"params": task.initial_params()})
        *_, last = rounds(AlgorithmStrategy(algorithm, task.layout), grid, start, num_rounds)
        return float(last.arrays["params"].numpy()[0])

    def gain(self, eta: float, momentum: float = 0.0) -> NDArray[np.float64]:
        """Return ``(w - v_i) / (w - m_i)`` after ``n_i`` steps, by the two-term recursion."""
        gains = []
        for h, steps in zip(self.h, self.sizes, strict=True):
            u, velocity = 1.0, 0.0  # u = (v - m) / (w - m)
            for _ in range(steps):
                velocity = momentum * velocity + h * u
                u -= eta * velocity
            gains.append(1 - u)
        return np.array(gains)

    def tau(self, momentum: float = 0.0) -> NDArray[np.float64]:
        """Return FedNova's ``tau_i``."""
        k = np.array(self.sizes)
        return (k - momentum * (1 - momentum**k) / (1 - momentum)) / (1 - momentum)

    def fixed_point(self, weights: NDArray[np.float64], gain: NDArray[np.float64]) -> float:
        return float(weights @ (gain * self.m) / (weights @ gain))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_fednova_with_unequal_steps_ends_at_its_own_fixed_point(momentum: float) -> None:
    """FedNova's fixed point solves ``sum alpha_i (w - v_i) / tau_i = 0``.

    FedAvg's solves ``sum alpha_i (w - v_i) = 0``.
    """
    problem, eta = Repeated(), 0.05
    gain = problem.gain(eta, momentum)
    nova = problem.fixed_point(problem.alpha / problem.tau(momentum), gain)
    average = problem.fixed_point(problem.alpha, gain)
    assert problem.end("fednova", eta, 120, momentum) == pytest.approx(nova, abs=1e-10)
    assert problem.end("fedavg", eta, 120, momentum) == pytest.approx(average, abs=1e-10)
    assert abs(nova - problem.optimum) < 0.3 * abs(average - problem.optimum)


def test_fednova_takes_out_the_bias_from_unequal_steps_only() -> None:
    """As ``eta -> 0``, FedNova's bias vanishes linearly.

    FedAvg's bias approaches that of the weights ``alpha_i K_i``.
    """
    problem = Repeated()
    nova, average = [], []
    for eta in (1e-2, 1e-3, 1e-4):
        gain = problem.gain(eta)
        nova.append(abs(problem.fixed_point(problem.alpha / problem.tau(), gain) - problem.optimum))
        average.append(abs(problem.fixed_point(problem.alpha, gain) - problem.optimum))
    assert nova[1] / nova[2] == pytest.approx(10, rel=0.02)
    assert nova[2] < 1e-3 < 0.05 < average[2]
    assert average[1] == pytest.approx(average[2], rel=0.02)


def test_scaffold_does_not_mind_unequal_steps() -> None:
    problem = Repeated()
    assert problem.end("scaffold", 0.1, 200) == pytest.approx(problem.optimum, abs=1e-10)


def test_the_weights_of_momentum_are_the_closed_form() -> None:
    problem = Repeated()
    update = families.build(families.find("algorithm", "fednova"), {"momentum": 0.8}).local_update
    down = {"params": torch.zeros(1, dtype=torch.float64)}
    for steps, wanted in zip(problem.sizes, problem.tau(0.8), strict=True):
        work = update.start(down, {})
        for _ in range(steps):
            work = update.step(lambda v, b: (v.sum(), torch.ones_like(v)), down, {}, work, None)
        upload = update.finish(down, {}, work).upload
        assert float(upload["tau"]) == pytest.approx(wanted, rel=1e-14)
        # Every gradient is 1: the mean direction is the learning rate.
        assert float(upload["direction"]) == pytest.approx(0.1, rel=1e-14)


# -------------------------------------------------- what public implementations get wrong, one test each


@pytest.mark.parametrize("name", ["scaffold", "scaffnew"])
def test_control_variates_start_at_zero(quadratic: Any, name: str) -> None:
    """They start at zero, so the first round equals FedAvg's to rounding."""
    steps = {"local_steps": K}
    if name == "scaffnew":
        count = GeometricSteps("full", 0.3).draw(SIZES, np.arange(N), 1, 0).steps_S
        steps = {"local_steps": int(count[0])}
    keys = steps if name == "scaffold" else {"probability": 0.3}
    lab = Lab(quadratic, name, **keys)
    state = lab.algorithm.local_update.init(torch.ones(D, dtype=torch.float64))
    assert not any(bool(value.any()) for value in state.values())
    assert distance(lab.run(1), Lab(quadratic, "fedavg", **steps).run(1)) < 1e-15


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_clients_keep_their_control_variates(quadratic: Any, engine: str) -> None:
    """After a round ``c_i`` is the mean of the client's gradients, ``(w - v_i) / (K eta)``.

    An absent client keeps its ``c_i``.
    """
    lab = Lab(quadratic, "scaffold", fraction=0.4, engine=engine, local_steps=K)
    model = lab.strategy.start_from(to_record({"params": lab.task.initial_params()}))
    before = np.zeros((N, D))
    for server_round in range(1, 6):
        requests = lab.strategy.configure_train(server_round, model, {}, lab.grid)  # type: ignore[arg-type]
        there = [lab.grid.client_of(node) for node in requests.node_ids]
        w, c = lab.server()["params"], lab.server()["control"]
        replies = lab.grid.send_and_receive(requests)
        model, _ = lab.strategy.aggregate_train(server_round, replies)
        after = lab.state("control")
        for i, (h, m) in enumerate(
            zip(hessians(quadratic), quadratic.ground_truth["client-optima"], strict=True)
        ):
            if i in there:
                v, total = w, np.zeros(D)
                for _ in range(K):
                    total += h @ (v - m)
                    v = v - ETA * (h @ (v - m) - before[i] + c)
                assert distance(after[i], total / K) < 1e-12
            else:
                assert np.array_equal(after[i], before[i])
        before = after


@pytest.mark.parametrize("fraction", [0.4, 1.0])
def test_scaffolds_c_moves_by_the_fraction_that_took_part(quadratic: Any, fraction: float) -> None:
    """With uniform weights ``c <- c + (S/N) mean_S (change of c_i)``, so always ``c = mean_N c_i``."""
    lab = Lab(quadratic, "scaffold", fraction=fraction, weighting="uniform", local_steps=K)
    model = lab.strategy.start_from(to_record({"params": lab.task.initial_params()}))
    c, before = np.zeros(D), np.zeros((N, D))
    for server_round in range(1, 6):
        requests = lab.strategy.configure_train(server_round, model, {}, lab.grid)  # type: ignore[arg-type]
        there = [lab.grid.client_of(node) for node in requests.node_ids]
        model, _ = lab.strategy.aggregate_train(server_round, lab.grid.send_and_receive(requests))
        after = lab.state("control")
        c = c + len(there) / N * (after - before)[there].mean(0)
        before = after
        assert distance(lab.server()["control"], c) < 1e-13
        assert distance(c, after.mean(0)) < 1e-13


def test_scaffolds_c_is_the_weighted_mean_of_the_c_i(quadratic: Any) -> None:
    """With weights by samples ``c`` is the weighted mean once every client has taken part."""
    lab = Lab(quadratic, "scaffold", fraction=0.4, local_steps=K)
    lab.run(30)
    assert (lab.server()["num-examples"] == SIZES).all()
    assert distance(lab.server()["control"], ALPHA @ lab.state("control")) < 1e-13


def test_fedprox_squares_its_norm(quadratic: Any) -> None:
    """The proximal gradient is ``mu (v - w)``: linear in the distance and zero at ``w``."""
    update = Lab(quadratic, "fedprox", proximal_mu=0.5).algorithm.local_update
    w = torch.arange(D, dtype=torch.float64)
    offset = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    down = {"params": w}
    for scale in (0.0, 1.0, 2.0, 100.0):
        v = w + scale * offset
        got = update.proximal_weight(down) * (v - w)
        penalty = torch.autograd.functional.jacobian(lambda v: 0.25 * ((v - w) ** 2).sum(), v)
        torch.testing.assert_close(got, 0.5 * scale * offset)
        torch.testing.assert_close(got, penalty)


def test_scaffnews_rounds_have_the_geometric_number_of_steps() -> None:
    """A round has K steps with ``P(K = k) = p (1 - p)^(k-1)``.

    K is the same for all clients, and differs between rounds and between seeds.
    """
    schedule, p = GeometricSteps("full", 0.25), 0.25
    plans = [schedule.draw(np.array([3, 50]), np.array([0, 7]), t, seed=1).steps_S for t in range(1, 2001)]
    assert all(plan[0] == plan[1] for plan in plans)
    steps = np.array([plan[0] for plan in plans])
    for k in (1, 2, 3, 6):
        wanted = p * (1 - p) ** (k - 1)
        assert abs((steps == k).mean() - wanted) < 4 * np.sqrt(wanted * (1 - wanted) / 2000)
    alone = schedule.draw(np.array([50]), np.array([7]), 12, seed=1).steps_S
    assert alone[0] == steps[11]
    other = [schedule.draw(np.array([3]), np.array([0]), t, seed=2).steps_S[0] for t in range(1, 101)]
    assert list(steps[:100]) != other
