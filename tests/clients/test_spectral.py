"""The spectral preconditioner against NumPy's singular values, and where PISA ends with it."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedpisa.clients.preconditioners import Derivatives, Spectral, spectral
from fedpisa.clients.preconditioners.spectral import root
from fedpisa.tasks.layout import ParamLayout

SHAPES = (
    (),
    (0,),
    (1,),
    (4,),
    (1, 5),
    (5, 1),
    (1, 1),
    (3, 3),
    (2, 6),
    (6, 2),
    (0, 3),
    (3, 0),
    (3, 2, 2, 2),
    (2, 1, 3),
)
SIZES = st.integers(0, 4)
SHAPE = st.one_of(st.sampled_from(SHAPES), st.lists(SIZES, max_size=4).map(tuple))
LAYOUTS = st.lists(SHAPE, min_size=1, max_size=4)


def layout_of(shapes: Any) -> ParamLayout:
    return ParamLayout.of(
        (f"p{i}", torch.empty(shape, dtype=torch.float64)) for i, shape in enumerate(shapes)
    )


def derivatives_of(layout: ParamLayout, g_P: Tensor) -> Derivatives:
    return Derivatives(torch.zeros(()), g_P, layout=layout)


def draw(layout: ParamLayout, seed: int, scale: float = 1.0) -> Tensor:
    """Return a vector whose matrices have rank 1, full rank, or all equal entries."""
    rng = np.random.default_rng(seed)
    parts = []
    for shape in layout.shapes:
        kind, value = rng.integers(4), rng.normal(size=shape)
        if kind == 0 and len(shape) > 1:
            value = np.multiply.outer(rng.normal(size=shape[:1]), rng.normal(size=shape[1:]))
        parts.append((np.ones(shape) if kind == 1 else value).reshape(-1))
    return torch.from_numpy(scale * np.concatenate(parts))


def step_of(rule: Spectral, layout: ParamLayout, q_P: Tensor, sigma: float, rho: float) -> Tensor:
    derivatives = derivatives_of(layout, q_P)
    memory = rule.init(q_P)
    q_P, memory = rule.direction(q_P, derivatives, memory)
    return rule.solve(q_P, rule(q_P, derivatives, memory)[0], derivatives, sigma, rho)


def by_svd(layout: ParamLayout, q_P: Tensor, sigma: float, rho: float, eta: float = inf) -> np.ndarray:
    """Return ``-U diag(s / (sigma + rho min(s, eta))) V'`` of each parameter, with NumPy's SVD."""
    steps = []
    for shape, part in zip(layout.shapes, np.split(q_P.numpy(), np.cumsum(layout.sizes)[:-1]), strict=True):
        if len(shape) < 2 or not part.size:
            steps.append(-part / (sigma + rho * np.minimum(np.abs(part), eta)))
        else:
            u, s, v = np.linalg.svd(part.reshape(shape[0], -1), full_matrices=False)
            steps.append(-((u * (s / (sigma + rho * np.minimum(s, eta)))) @ v).ravel())
    return np.concatenate(steps)


# -------------------------------------------------------------------------------------------- one step


@settings(deadline=None, max_examples=60)
@given(
    LAYOUTS,
    st.integers(0, 10**6),
    st.sampled_from([1e-3, 1.0, 10.0]),
    st.sampled_from([(1.0, 3.0), (0.3, 3.0), (2.0, 0.0), (0.5, 20.0)]),
    st.sampled_from([inf, 0.5]),
)
def test_a_step_is_the_formula_of_the_singular_values(
    shapes: Any, seed: int, scale: float, penalties: tuple[float, float], eta: float
) -> None:
    layout = layout_of(shapes)
    q_SP = torch.stack([draw(layout, seed + client, scale) for client in range(3)])
    rule = Spectral(eta=eta)
    alone = torch.stack([step_of(rule, layout, q_P, *penalties) for q_P in q_SP])
    stacked = torch.func.vmap(lambda q_P: step_of(rule, layout, q_P, *penalties))(q_SP)
    wanted = torch.from_numpy(np.stack([by_svd(layout, q_P, *penalties, eta) for q_P in q_SP]))
    size = max(float(wanted.norm()), 1e-300)
    assert float((alone - wanted).norm()) <= 1e-10 * size
    assert float((stacked - wanted).norm()) <= 1e-10 * size


@settings(deadline=None, max_examples=25)
@given(LAYOUTS, st.integers(0, 10**6), st.sampled_from([inf, 0.5]), st.sampled_from([0.0, 0.9]))
def test_q_is_symmetric_with_eigenvalues_between_0_and_eta(
    shapes: Any, seed: int, eta: float, beta: float
) -> None:
    """(2.11) holds: ``Q``, recovered from `solve` on every unit vector, has ``0 <= Q <= eta I``."""
    layout, rule = layout_of(shapes), Spectral(eta=eta, beta=beta)
    assume(layout.size)
    memory = rule.init(torch.zeros(layout.size, dtype=torch.float64))
    for step in range(2 if beta else 1):
        q_P = draw(layout, seed + step)
        derivatives = derivatives_of(layout, q_P)
        memory = rule.direction(q_P, derivatives, memory)[1]
        scale_P, memory = rule(q_P, derivatives, memory)
    units = torch.eye(layout.size, dtype=torch.float64)
    inverse = -torch.func.vmap(lambda e_P: rule.solve(e_P, scale_P, derivatives, 1.0, 1.0))(units)
    q_PP = torch.linalg.inv(inverse) - units
    torch.testing.assert_close(q_PP, q_PP.mT, rtol=1e-9, atol=1e-9)
    values = torch.linalg.eigvalsh(q_PP)
    assert -1e-9 <= float(values.min()) <= float(values.max()) <= eta + 1e-9
    if not beta and eta == inf:  # Q^2 acts on a matrix as q q'
        for shape, part in zip(layout.shapes, q_P.split(layout.sizes), strict=True):
            if len(shape) > 1 and part.numel():
                largest = float(torch.linalg.matrix_norm(part.view(shape[0], -1), 2))
                assert float(values.max()) >= largest - 1e-7


def test_far_away_it_is_muons_direction_and_near_a_solution_plain_pisa() -> None:
    layout, sigma, rho = layout_of([(3, 5), (6, 2), (4,)]), 0.7, 3.0
    q_P = draw(layout, 5)
    errors = [
        float((step_of(Spectral(), layout, size * q_P, sigma, rho) / size + q_P / sigma).norm())
        for size in (1e-3, 1e-4, 1e-5)
    ]
    assert errors[0] <= 0.1
    assert errors[1] / errors[0] == pytest.approx(0.1, rel=0.1)
    assert errors[2] / errors[1] == pytest.approx(0.1, rel=0.1)
    far = step_of(Spectral(), layout, 1e9 * q_P, sigma, rho)
    for shape, step, q in zip(layout.shapes, far.split(layout.sizes), q_P.split(layout.sizes), strict=True):
        if len(shape) == 1:
            torch.testing.assert_close(step, -q.sign() / rho, rtol=1e-7, atol=0)
        else:
            values = torch.linalg.svdvals(step.view(shape))
            torch.testing.assert_close(values, torch.full_like(values, 1 / rho), rtol=1e-6, atol=0)


@pytest.mark.parametrize("eta", [inf, 0.4])
@pytest.mark.parametrize(("beta", "momentum"), [(0.0, 0.9), (0.8, 0.0), (0.8, 0.9)])
def test_means_are_explicit_sums(beta: float, momentum: float, eta: float) -> None:
    """Four steps equal means with weights ``decay^(t-j) / sum_j decay^(t-j)``, written out in NumPy."""
    layout, rule = layout_of([(2, 3), (3, 2), (2,)]), Spectral(eta=eta, beta=beta, momentum=momentum)
    dual_P = draw(layout, 99)
    memory = rule.init(dual_P)
    gradients: list[np.ndarray] = []
    squares: list[list[np.ndarray]] = []
    for count in range(1, 5):
        g_P = draw(layout, count)
        derivatives = derivatives_of(layout, g_P)
        q_P, memory = rule.direction(dual_P + g_P, derivatives, memory)
        scale_P, memory = rule(q_P, derivatives, memory)
        got = rule.solve(q_P, scale_P, derivatives, 0.5, 2.0)

        def mean(values: list[Any], decay: float, count: int = count) -> Any:
            weights = (
                [decay ** (count - j) for j in range(1, count + 1)] if decay else [0.0] * (count - 1) + [1.0]
            )
            return sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)

        gradients.append(g_P.numpy())
        wanted_q = dual_P.numpy() + momentum * mean(gradients, momentum) + (1 - momentum) * g_P.numpy()
        np.testing.assert_allclose(q_P.numpy(), wanted_q, rtol=1e-12, atol=1e-14)
        a, b, c = wanted_q[:6].reshape(2, 3), wanted_q[6:12].reshape(3, 2), wanted_q[12:]
        squares.append([a @ a.T, b.T @ b, c * c])
        m_a, m_b, m_c = (mean([one[i] for one in squares], beta) for i in range(3))

        def shifted(m: np.ndarray) -> np.ndarray:
            values, basis = np.linalg.eigh(m)
            return (basis * (0.5 + 2.0 * np.minimum(np.sqrt(np.maximum(values, 0)), eta))) @ basis.T

        wanted = [
            -np.linalg.solve(shifted(m_a), a),
            -np.linalg.solve(shifted(m_b), b.T).T,
            -c / (0.5 + 2.0 * np.minimum(np.sqrt(m_c), eta)),
        ]
        np.testing.assert_allclose(
            got.numpy(), np.concatenate([w.ravel() for w in wanted]), rtol=1e-10, atol=1e-12
        )


def test_a_client_that_diverged_does_not_stop_the_others() -> None:
    layout = layout_of([(3, 4), (2,)])
    q_SP = torch.stack([draw(layout, 0), torch.full((layout.size,), torch.nan, dtype=torch.float64)])
    steps = torch.func.vmap(lambda q_P: step_of(Spectral(), layout, q_P, 1.0, 1.0))(q_SP)
    torch.testing.assert_close(steps[0], step_of(Spectral(), layout, q_SP[0], 1.0, 1.0))
    assert bool(steps[1].isnan().all())
    assert bool(step_of(Spectral(), layout, q_SP[1], 1.0, 1.0).isnan().all())


# ------------------------------------------------------------------------------------ Newton-Schulz root


@pytest.mark.parametrize(("precision", "smallest"), [(torch.float64, 5.5e-7), (torch.float32, 1.75e-3)])
@pytest.mark.parametrize("rank", [0, 1, 3, 40], ids=lambda rank: f"rank {rank}")
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_root_is_that_of_eigh(precision: torch.dtype, smallest: float, rank: int, size: float) -> None:
    """The root is ``(M + d I)^{1/2}``, within ``sqrt(d)`` of that of ``M``, also for singular matrices."""
    generator = torch.Generator().manual_seed(0)
    q = (
        size
        * torch.randn(3, 40, rank, generator=generator, dtype=torch.float64)
        @ torch.randn(3, rank, 70, generator=generator, dtype=torch.float64)
    )
    square = q @ q.mT
    norm = torch.linalg.matrix_norm(square)[:, None, None]
    values, basis = torch.linalg.eigh(square + smallest**2 * norm * torch.eye(40))
    wanted = (basis * values.clamp(min=0).sqrt().unsqueeze(-2)) @ basis.mT
    got = torch.func.vmap(root)(square.to(precision))
    error = torch.linalg.matrix_norm(got - wanted, 2)
    scale = norm[:, 0, 0].sqrt().clamp(min=1e-12)
    assert float((error / scale).max()) <= 0.1 * smallest + (1e-5 if precision == torch.float32 else 1e-9)
    torch.testing.assert_close(
        root(square[1].to(precision)), got[1], rtol=1e-3, atol=1e-3 * smallest * float(scale[1])
    )


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.float64, 1e-4), (torch.float32, 1e-1)])
def test_devices_without_quick_eigenvalues_take_the_same_step(
    precision: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, rule = layout_of([(8, 5), (5, 8), (4, 2, 3), (3,)]), Spectral()
    q_SP = torch.stack([draw(layout, seed) for seed in range(4)]).to(precision)
    wanted = torch.func.vmap(lambda q_P: step_of(rule, layout, q_P, 0.3, 3.0))(q_SP)
    monkeypatch.setattr(spectral, "decomposes", lambda device: False)
    got = torch.func.vmap(lambda q_P: step_of(rule, layout, q_P, 0.3, 3.0))(q_SP)
    assert not torch.equal(got, wanted)
    assert float((got - wanted).norm()) <= tolerance * float(wanted.norm())
    bounded = Spectral(eta=1e-3)  # needs the eigenvalues
    torch.testing.assert_close(
        step_of(bounded, layout, q_SP[0].double(), 0.3, 3.0),
        torch.from_numpy(by_svd(layout, q_SP[0].double(), 0.3, 3.0, 1e-3)),
    )


@pytest.mark.parametrize("rank", [1.0, 0.5], ids=lambda share: f"rank {share} k")
@pytest.mark.parametrize("k", [64, 256, 512, 768])
def test_the_root_of_a_large_matrix_takes_nearly_the_exact_step(
    k: int, rank: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``Q`` at most ``e`` too large, steps differ by ``max_s rho s e / (sigma + rho s)^2 = e / (4 sigma)``."""
    layout, rule, sigma = layout_of([(k, k + 8)]), Spectral(), 5.0
    generator = torch.Generator().manual_seed(k)
    left = torch.randn(2, k, round(rank * k), generator=generator)
    q_SP = (left @ torch.randn(2, left.shape[2], k + 8, generator=generator)).flatten(1) / k
    # In float64, because eigenvalues of a float32 matrix have few digits.
    wanted = [torch.from_numpy(by_svd(layout, q_P.double(), sigma, 30.0)) for q_P in q_SP]
    monkeypatch.setattr(spectral, "decomposes", lambda device: False)
    got = torch.func.vmap(lambda q_P: step_of(rule, layout, q_P, sigma, 30.0))(q_SP)
    for q_P, one, other in zip(q_SP, got, wanted, strict=True):
        q = q_P.view(k, k + 8)
        too_large = torch.finfo(q.dtype).eps ** 0.4 * float((q @ q.mT).norm()) ** 0.5
        error = float(torch.linalg.matrix_norm((one - other).view(k, k + 8), 2))
        assert error <= too_large / (4 * sigma) + 1e-5


# ------------------------------------------------------------------------------------------ what PISA does


class Quadratic(nn.Module):
    """Least squares in matrices, a kernel, a vector and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"wide": (2, 4), "tall": (3, 2), "kernel": (2, 2, 1, 2), "vector": (3,), "scalar": ()}
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.ones(shape, dtype=torch.float64)))

    def forward(self, x: Tensor) -> Tensor:
        return x @ torch.cat([parameter.reshape(-1) for parameter in self.parameters()])


@pytest.mark.parametrize("local_steps", [1, 3])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"momentum": 0.5},
        {"beta": 0.9},
        {"eta": 0.05},
        {"lambda": 0.2, "mu": 0.1, "gamma": 0.999},
        {"rules": {"vector|scalar": "adam", "kernel": "fisher", "tall": {"name": "hutchinson", "probes": 2}}},
    ],
    ids=str,
)
def test_it_reaches_the_optimum_of_unequal_quadratics(
    lab: Any, keys: dict[str, Any], local_steps: int, engine: str
) -> None:
    """At the end ``w = w_i`` is the weighted optimum and ``pi_i = -grad F_i(w)``, which are not zero."""
    rng, sizes = np.random.default_rng(3), (300, 450, 800)
    x = np.concatenate(
        [rng.normal(size=(size, 26)) * scale for size, scale in zip(sizes, (0.7, 1, 1.3), strict=True)]
    )
    y = x @ rng.normal(size=26) + rng.normal(size=len(x)) + np.repeat([0.0, 2.0, -1.0], sizes) * x[:, 0]
    parts = lab.split(sizes)
    algorithm = lab.Case(
        "spectral-pisa", {"sigma": 3.0, "rho": 1.0, "local-steps": local_steps, "batch-size": "full", **keys}
    ).build()
    federation = lab.Federation(algorithm, Quadratic(), x, y, parts, engine, num_classes=None).run(120)
    mu, lambda_ = keys.get("mu", 0.0), keys.get("lambda", 0.0)
    optimum = np.linalg.solve(x.T @ x / len(x) + (mu + lambda_) * np.eye(26), x.T @ y / len(x))
    assert lab.relative(federation.params, torch.from_numpy(optimum)) <= 1e-8
    for state, p in zip(federation.states(), parts, strict=True):
        dual = -(x[p].T @ (x[p] @ optimum - y[p]) / len(p) + mu * optimum)
        assert np.linalg.norm(dual) > 0.1
        assert lab.relative(state["dual"], torch.from_numpy(dual)) <= 1e-7
