"""Second-order preconditioners: their estimates, and where PISA ends with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

import fedpisa
from fedpisa import families
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Derivatives, Fisher, Hutchinson, NewtonSchulz
from fedpisa.clients.preconditioners import hutchinson as hutchinson_module
from fedpisa.clients.preconditioners.hutchinson import rademacher
from fedpisa.clients.preconditioners.newton_schulz import newton_schulz, orthogonal
from fedpisa.datasets.synthetic import quadratic
from fedpisa.rng import step_keys
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.strategies.pisa import Pisa
from fedpisa.tasks.base import Task
from fedpisa.tasks.criterion import OwnCriterion
from fedpisa.tasks.supervised import Supervised, supervised

pytestmark = pytest.mark.filterwarnings("error")
GRADIENTS = {"autograd": AutogradGradient, "stacked": StackedGradient}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches() -> MiniBatches:
    """Return mini-batches of 4, 2 and 1 samples and an empty one, padded with large values."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (4, 4), generator=generator)
    weight = torch.zeros(4, 4, dtype=torch.float64)
    for c, size in enumerate((4, 2, 1)):
        weight[c, :size] = 1 / (3 * size)
    x[weight == 0] = 1e3
    return MiniBatches(x, y, weight)


def losses_of(task: Task, batch: MiniBatches) -> Any:
    """Return a function of the flat parameters that gives the non-empty mini-batches' losses."""

    def losses(params_P: Tensor) -> Tensor:
        params = task.layout.unflatten(params_P)
        return torch.stack(
            [
                nn.functional.cross_entropy(functional_call(task.module, params, (x[w > 0],)), y[w > 0])
                for x, y, w in zip(batch.x, batch.y_CB, batch.weight_CB, strict=True)
                if bool((w > 0).any())
            ]
        )

    return losses


# --------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("kind", GRADIENTS)
def test_every_mini_batchs_gradient_is_its_own(kind: str) -> None:
    task, batch = supervised(mlp(), 3), batches()
    gradient, w_P = GRADIENTS[kind](task, torch.zeros(0)), task.initial_params()
    loss, gradients_CP = gradient.each(w_P, batch)
    losses = losses_of(task, batch)
    wanted_CP = jacrev(losses)(w_P)
    torch.testing.assert_close(gradients_CP[:3], wanted_CP, rtol=1e-12, atol=1e-14)
    assert not bool(gradients_CP[3].any())
    torch.testing.assert_close(loss, losses(w_P).mean())
    torch.testing.assert_close(gradient(w_P, batch)[1], wanted_CP.mean(0))
    assert gradient.layout is task.layout


@pytest.mark.parametrize("kind", GRADIENTS)
def test_products_are_with_the_hessian_of_the_mean_of_mini_batch_means(kind: str) -> None:
    task, batch = supervised(mlp(), 3), batches()
    gradient, w_P = GRADIENTS[kind](task, torch.zeros(0)), task.initial_params()
    vectors_RP = torch.randn(3, len(w_P), dtype=torch.float64)
    loss, gradient_P, products_RP = gradient.with_hessian(w_P, batch, vectors_RP)
    losses = losses_of(task, batch)
    matrix_PP = jacrev(jacrev(lambda v: losses(v).mean()))(w_P)
    torch.testing.assert_close(products_RP, vectors_RP @ matrix_PP, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(gradient_P, gradient(w_P, batch)[1])
    torch.testing.assert_close(loss, losses(w_P).mean())
    torch.testing.assert_close(gradient.loss, loss)


@pytest.mark.parametrize("size", [1, 3])
def test_both_gradients_agree_on_a_module_with_batchnorm(size: int) -> None:
    """Both gradients agree, as each mini-batch has its own statistics and running statistics."""
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    task, batch = supervised(module, 3), batches()
    batch = MiniBatches(batch.x[:size], batch.y_CB[:size], batch.weight_CB[:size] * 3 / size)
    w_P, buffers_Q = task.initial_params(), task.initial_buffers()
    vectors_RP = torch.randn(2, len(w_P), dtype=torch.float64)
    plain, stacked = (kind(task, buffers_Q) for kind in GRADIENTS.values())
    for name, arguments in (("each", ()), ("with_hessian", (vectors_RP,))):
        wanted = getattr(plain, name)(w_P, batch, *arguments)
        for a, b in zip(getattr(stacked, name)(w_P, batch, *arguments), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(stacked.buffers_Q, plain.buffers_Q)
        assert not torch.equal(stacked.buffers_Q, buffers_Q)


def test_a_loss_without_curvature_has_zero_products() -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return self.weight * x

    class Sum:  # a loss that is linear in the parameters
        def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
            return outputs.reshape(-1)

    batch = MiniBatches(*(torch.ones(1, 2, dtype=torch.float64) for _ in range(2)), torch.full((1, 2), 0.5))
    for kind in GRADIENTS.values():
        gradient = kind(Supervised(Linear(), OwnCriterion(Sum(), "sum")), torch.zeros(0))
        _, gradient_P, products_RP = gradient.with_hessian(
            torch.ones(1).double(), batch, torch.ones(2, 1).double()
        )
        assert (gradient_P.tolist(), products_RP.tolist()) == ([1.0], [[0.0], [0.0]])


# ------------------------------------------------------------------------------------------------ fisher


def test_fisher_is_an_explicit_loop_over_mini_batches(lab: Any, engine: str) -> None:
    """Two rounds of one client equal a NumPy loop on least squares.

    A step has three mini-batches and a ridge.
    """
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(9, 4)), rng.normal(size=9), rng.normal(size=4)
    module = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(w))
    beta, sigma, rho, mu, eta = 0.75, 2.0, 3.0, 0.1, 1.5
    rule = Fisher(beta=beta, eta=eta)
    update = PisaUpdate(rule, sigma=sigma, rho=rho, mu=mu, batch_size=3, batches_per_round="all")
    federation = lab.Federation(Pisa(update), module, x, y, [np.arange(9)], engine, num_classes=None).run(2)

    dual, h = np.zeros(4), np.zeros(4)
    for server_round in (1, 2):
        plan = update.batch_sampler().draw(np.array([9]), np.array([0]), server_round, 0)
        rows = plan.index_SKCB[0, 0]
        g_C = np.array([x[b].T @ (x[b] @ w - y[b]) / len(b) for b in rows])
        h = beta * h + (1 - beta) * ((g_C + mu * w) ** 2).mean(0)
        assert (h > eta).any() or server_round == 1
        q = dual + g_C.mean(0) + mu * w
        step = -q / (sigma + rho * np.minimum(h, eta))
        dual = dual + sigma * step
        w = w + step + dual / sigma
    assert lab.relative(federation.params, torch.from_numpy(w)) <= 1e-13
    assert lab.relative(federation.states()[0]["curvature"], torch.from_numpy(h)) <= 1e-13


# -------------------------------------------------------------------------------------------- hutchinson


def splitmix64(seed: int, number: int) -> list[int]:
    """Return the first outputs of SplitMix64, computed with Python's integers."""
    outputs, word = [], 2**64 - 1
    for _ in range(number):
        seed = seed + 0x9E3779B97F4A7C15 & word
        z = (seed ^ seed >> 30) * 0xBF58476D1CE4E5B9 & word
        z = (z ^ z >> 27) * 0x94D049BB133111EB & word
        outputs.append(z ^ z >> 31)
    return outputs


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_signs_are_splitmix64s_top_bits(seed: int) -> None:
    key = torch.from_numpy(np.array(seed, dtype=np.uint64).view(np.int64))
    wanted = [-1 if bits >> 63 else 1 for bits in splitmix64(seed, 35)]
    assert rademacher(key, 5, 7).flatten().tolist() == wanted


def test_signs_are_fair_and_independent_of_each_other() -> None:
    """Signs differ independently between clients, steps, probes and coordinates.

    Means and correlations are within five standard errors.
    """
    keys = torch.from_numpy(step_keys(0, np.arange(50), 1, 20).copy()).flatten()
    signs = torch.func.vmap(lambda key: rademacher(key, 4, 10))(keys).double().reshape(1000, 40)
    assert float(signs.mean(0).abs().max()) <= 5 / 1000**0.5
    correlation = signs.T @ signs / 1000 - torch.eye(40)
    assert float(correlation.abs().max()) <= 5 / 1000**0.5
    neighbours = (signs[1:] * signs[:-1]).mean(1)
    assert abs(float(neighbours.mean())) <= 5 / (999 * 40) ** 0.5


def test_keys_are_the_clients_own() -> None:
    """Keys depend on the seed, the client, the round and the step, and not on the rest of the cohort."""
    together = step_keys(3, np.array([0, 4, 2]), 5, 3)
    for row, client_id in enumerate((0, 4, 2)):
        assert (step_keys(3, np.array([client_id]), 5, 2) == together[row, :2]).all()
    others = [step_keys(seed, np.array([0, 4, 2]), t, 3) for seed, t in ((3, 6), (4, 5))]
    assert len({*together.flat, *others[0].flat, *others[1].flat}) == 27


class OneHot(nn.Module):
    """A model with a diagonal Hessian, because every sample depends on one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("probes", [1, 3])
def test_a_diagonal_hessian_is_found_exactly(kind: str, probes: int) -> None:
    """One probe with any signs is exact, because ``v_j^2 = 1``."""
    x = torch.diag(torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64))[None]
    for key in range(5):
        weight = torch.full((1, 3), 1 / 3, dtype=torch.float64)
        batch = MiniBatches(x, torch.ones(1, 3, dtype=torch.float64), weight, torch.tensor(key))
        task = supervised(OneHot(), None)
        slope = Hutchinson(probes=probes).evaluate(
            GRADIENTS[kind](task, torch.zeros(0)), task.initial_params(), batch, 0.0
        )
        assert slope.curvature_P is not None
        torch.testing.assert_close(
            slope.curvature_P, torch.tensor([1.0, 4.0, 16.0]).double() / 3, rtol=1e-15, atol=0
        )


def test_the_mean_over_all_signs_is_the_diagonal(monkeypatch: pytest.MonkeyPatch) -> None:
    """The estimate is unbiased: its mean over all ``2^P`` sign vectors is exact for a dense Hessian."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(1, 8, 6))), torch.from_numpy(rng.normal(size=(1, 8)))
    batch = MiniBatches(x, y, torch.full((1, 8), 1 / 8, dtype=torch.float64))
    task = supervised(nn.Linear(6, 1, bias=False).double(), None)
    every = torch.cartesian_prod(*[torch.tensor([-1, 1])] * 6)
    monkeypatch.setattr(hutchinson_module, "rademacher", lambda key, rows, columns: every)
    slope = Hutchinson(probes=64).evaluate(
        StackedGradient(task, torch.zeros(0)), task.initial_params(), batch, 0.0
    )
    wanted = (x[0] ** 2).mean(0)
    assert slope.curvature_P is not None
    torch.testing.assert_close(slope.curvature_P, wanted, rtol=1e-13, atol=0)


def test_the_mean_over_drawn_probes_approaches_the_diagonal() -> None:
    """4000 drawn probes are within five standard errors ``sqrt(sum_{k != j} H_jk^2 / R)``."""
    rng = np.random.default_rng(0)
    x, y = torch.from_numpy(rng.normal(size=(1, 8, 6))), torch.from_numpy(rng.normal(size=(1, 8)))
    batch = MiniBatches(x, y, torch.full((1, 8), 1 / 8, dtype=torch.float64), torch.tensor(3))
    task = supervised(nn.Linear(6, 1, bias=False).double(), None)
    gradient = StackedGradient(task, torch.zeros(0))
    slope = Hutchinson(probes=4000).evaluate(gradient, task.initial_params(), batch, 0.0)
    matrix = x[0].T @ x[0] / 8
    error = (matrix - matrix.diag().diag()).square().sum(1).div(4000).sqrt()
    assert slope.curvature_P is not None
    assert bool(((slope.curvature_P - matrix.diag()).abs() <= 5 * error).all())


def test_hutchinson_is_newtons_method_on_diagonal_quadratics(lab: Any, engine: str) -> None:
    """PISA equals a NumPy loop on ``f_i = h_i (w - c_i)^2 / 2``.

    The loop has memory, a ridge, ``eta``, and the sum over mini-batches.
    """
    beta, sigma, rho, mu, eta = 0.5, 2.0, 3.0, 0.1, 3.0
    x, y, sizes = np.array([[1.0], [2.0], [3.0], [1.0]]), np.array([1.0, 2.0, -1.0, 0.0]), (2, 2)
    module = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(2.0)
    update = PisaUpdate(
        Hutchinson(eta=eta, beta=beta),
        sigma=sigma,
        rho=rho,
        mu=mu,
        batch_size=1,
        batches_per_round="all",
        gradient_reduction="sum",
    )
    federation = lab.Federation(Pisa(update), module, x, y, lab.split(sizes), engine, num_classes=None).run(3)

    w, dual, h = 2.0, np.zeros(2), np.zeros(2)
    a, b = x[:, 0].reshape(2, 2), y.reshape(2, 2)
    for _ in range(3):
        q = dual + (a * (a * w - b)).sum(1) + mu * w
        h = beta * h + (1 - beta) * ((a * a).sum(1) + mu)
        step = -q / (sigma + rho * np.clip(h, 0, eta))
        dual = dual + sigma * step
        w = float(np.mean(w + step + dual / sigma))
    assert abs(float(federation.params) - w) <= 1e-13
    got = [float(state["curvature"]) for state in federation.states()]
    np.testing.assert_allclose(got, h, rtol=1e-13)


# ----------------------------------------------------------------------------------------- newton-schulz


def by_svd(matrix: Tensor) -> Tensor:
    """Return NS5 as its closed form, a polynomial of the singular values."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s = s / s.square().sum().sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(3, 3), (2, 7), (7, 2), (1, 4), (4, 1), (1, 1)], ids=str)
def test_newton_schulz_is_a_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    stack = torch.randn(5, *shape, dtype=torch.float64)
    alone = torch.stack([newton_schulz(matrix) for matrix in stack])
    torch.testing.assert_close(alone, torch.stack([by_svd(m) for m in stack]), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(newton_schulz)(stack), alone, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(newton_schulz(1e-30 * stack[0]), alone[0])
    assert not bool(newton_schulz(0 * stack[0]).any())
    scale = max(1.0, shape[0] / shape[1]) ** 0.5
    torch.testing.assert_close(orthogonal(stack[0]), scale * alone[0])


def test_singular_values_end_near_one() -> None:
    """Singular values from 0.01 to 1 of the norm end in [0.68, 1.21], which is only nearly orthogonal."""
    s = torch.linspace(0.01, 1.0, 1000, dtype=torch.float64)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert 0.68 <= float(s.min()) <= float(s.max()) <= 1.21


class Shapes(nn.Module):
    """A module with a scalar, a vector, a wide and a tall matrix, and a convolution's kernel."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"scalar": (), "vector": (3,), "wide": (2, 3), "tall": (4, 2), "kernel": (3, 2, 2, 2)}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape, dtype=torch.float64)))


def test_every_parameter_is_treated_by_its_shape() -> None:
    """Two steps equal an explicit loop over the parameters.

    The loop has Nesterov momentum, the scale, Scheme III, ``eta`` and ``mu w``.
    """
    task = supervised(Shapes(), None)
    rule = NewtonSchulz(momentum=0.9, beta=0.8, eps=1e-3, eta=0.3)
    torch.manual_seed(0)
    size = task.layout.size
    rest_P = torch.randn(size, dtype=torch.float64)  # pi_i + mu w
    memory = rule.init(rest_P)
    moment: dict[str, Any] = dict.fromkeys(task.layout.names, 0.0)
    buffer: dict[str, Any] = dict.fromkeys(task.layout.names, 0.0)
    for count in (1, 2):
        g_P = torch.randn(size, dtype=torch.float64)
        slope = Derivatives(torch.zeros(()), g_P, layout=task.layout)
        d_P, memory = rule.direction(rest_P + g_P, slope, memory)
        scale_P, memory = rule(d_P, slope, memory)
        got = task.layout.unflatten(d_P), task.layout.unflatten(scale_P)
        rest, gradients = task.layout.unflatten(rest_P), task.layout.unflatten(g_P)
        for name, g in gradients.items():
            if name in ("scalar", "vector"):
                d = rest[name] + g
                moment[name] = 0.8 * moment[name] + 0.2 * d * d
                scale = (moment[name] / (1 - 0.8**count)).clamp(max=0.09).sqrt() + 1e-3
            else:
                buffer[name] = 0.9 * buffer[name] + g
                h = (g + 0.9 * buffer[name]).reshape(g.shape[0], -1)
                o = by_svd(h) * (2**0.5 if name == "tall" else 1.0)
                d = o.reshape(g.shape) + rest[name]
                scale = d.abs().clamp(max=0.3) + 1e-3
            torch.testing.assert_close(got[0][name], d, rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(got[1][name], scale, rtol=1e-11, atol=1e-12)


# ----------------------------------------------------------------------------------------- what PISA does


QUADRATIC: dict[str, Any] = {
    "dataset": "quadratic", "partitioner": "natural", "num-clients": 8, "dtype": "float64",
    "batch-size": "full", "eval-every": 1000,
}  # fmt: skip


def distance(values: dict[str, object], rounds: int) -> float:
    """Return PISA's final distance from the optimum of `quadratic`, relative to the optimum."""
    result = fedpisa.run({**QUADRATIC, "algorithm": "pisa", "num-server-rounds": rounds, **values})
    optimum = quadratic(seed=0, num_clients=8).ground_truth["optimum"]
    (got,) = result.parameters.values()
    return float(np.linalg.norm(got.ravel() - optimum) / np.linalg.norm(optimum))


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize("rule", ["fisher", "hutchinson"])
def test_pisa_reaches_the_optimum(rule: str, local_steps: int) -> None:
    values = {"preconditioner": rule, "sigma": 1.0, "rho": 1.0, "local-steps": local_steps}
    assert distance(values, 150) <= 1e-8


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_nsisa_balances_the_clients_directions_instead_of_their_gradients(momentum: float) -> None:
    """The stationary point balances unit directions: ``sum alpha_i g_i / ||g_i|| = 0``.

    For one row, ``NS5(g)`` is a constant times ``g / ||g||``. The point is a weighted geometric median of
    sorts, here 15 % away from the optimum.
    """
    values = {"sigma": 5.0, "rho": 1.0, "momentum": momentum, "num-server-rounds": 800}
    result = fedpisa.run({**QUADRATIC, "algorithm": "nsisa", **values})
    data = quadratic(seed=0, num_clients=8)
    (w,) = (value.ravel() for value in result.parameters.values())
    gradients = np.array(
        [data.x_train[p].T @ (data.x_train[p] @ w - data.y_train[p]) / len(p) for p in result.partition]
    )
    alpha = np.array([len(p) for p in result.partition]) / len(data.y_train)
    units = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    assert np.linalg.norm(alpha @ units) <= 1e-7
    assert np.linalg.norm(alpha @ gradients) >= 0.2
    optimum = data.ground_truth["optimum"]
    assert np.linalg.norm(w - optimum) / np.linalg.norm(optimum) == pytest.approx(0.152, abs=0.001)


# ``Q`` grows with this power of the loss's scale; ``rho Q`` must grow with the first power.
POWERS = {"identity": 0, "fisher": 2}


@pytest.mark.parametrize("rule", sorted(families.available("preconditioner").keys() - {"newton-schulz"}))
def test_the_unit_of_the_loss_does_not_matter(lab: Any, rule: str) -> None:
    """``(g, pi, sigma, lambda, mu)`` times c gives the same models, and duals times c."""
    c = 7.3
    runs = []
    for scale in (1.0, c):
        keys: dict[str, object] = {
            "preconditioner": rule,
            "sigma": scale,
            "rho": 2.0 * scale ** (1 - POWERS.get(rule, 1)),
            "lambda": 0.2 * scale,
            "mu": 0.1 * scale,
            "batches-per-round": "all",
            "local-steps": 2,
            "gamma": 0.9,
            "eps": 0.0,
        }
        keys = {
            key: value
            for key, value in keys.items()
            if key in families.keys_of(families.find("algorithm", "pisa"), keys)
        }
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(30, 4)) * scale**0.5, rng.normal(size=30) * scale**0.5
        module = lab.fill(nn.Linear(4, 1, bias=False))
        runs.append(
            lab.Federation(
                lab.Case("pisa", keys).build(), module, x, y, lab.split((7, 20, 3)), "vmap", num_classes=None
            ).run(6)
        )
    plain, scaled = runs
    assert lab.relative(scaled.params, plain.params) <= 1e-12
    for a, b in zip(scaled.states(), plain.states(), strict=True):
        assert lab.relative(a["dual"], c * b["dual"]) <= 1e-11


@pytest.mark.parametrize("rule", ["fisher", "hutchinson", "newton-schulz"])
def test_engines_agree_on_a_convolutional_network(lab: Any, rule: str) -> None:
    """Both engines agree on second derivatives of convolution, pooling, BatchNorm and GroupNorm.

    The stacked engine uses no slow fallback, which would raise a warning.
    """

    def module() -> nn.Module:
        layers = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)]
        layers += [nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.Flatten(), nn.Linear(16, 3)]
        return lab.fill(nn.Sequential(*layers))

    data = lab.blobs((3, 1, 9, 2), shape=(1, 8, 8))
    algorithm = lab.Case("pisa", {"preconditioner": rule, "batches-per-round": 2}).build()
    loop, stacked = (lab.make(algorithm, engine, module=module, **data).run(3) for engine in ("loop", "vmap"))
    assert lab.relative(stacked.params, loop.params) <= 1e-9
