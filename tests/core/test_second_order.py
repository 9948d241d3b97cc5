"""Second-order preconditioners: what they estimate, and where PISA ends with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient, StackedGradient
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Fisher
from fedpisa.strategies.pisa import Pisa
from fedpisa.task import Task

pytestmark = pytest.mark.filterwarnings("error")
GRADIENTS = {"autograd": AutogradGradient, "stacked": StackedGradient}


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches() -> MiniBatches:
    """Return mini-batches of 4, 2 and 1 samples, and one that is not there, padded with what would spoil sums."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (4, 4), generator=generator)
    weight = torch.zeros(4, 4, dtype=torch.float64)
    for c, size in enumerate((4, 2, 1)):
        weight[c, :size] = 1 / (3 * size)
    x[weight == 0] = 1e3
    return MiniBatches(x, y, weight)


def losses_of(task: Task, batch: MiniBatches) -> Any:
    """Return the losses of the mini-batches that are there as a function of the flat vector."""

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
    task, batch = Task(mlp(), 3), batches()
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
    task, batch = Task(mlp(), 3), batches()
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
    """Statistics and running statistics are each mini-batch's own."""
    module = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    task, batch = Task(module, 3), batches()
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

    class LinearTask(Task):  # a loss that is linear in the parameters
        def losses(self, params: Any, buffers_Q: Tensor, x: Tensor, y_B: Tensor, mask_B: Tensor) -> Any:
            return (params["weight"] * x).reshape(-1), buffers_Q

    batch = MiniBatches(*(torch.ones(1, 2, dtype=torch.float64) for _ in range(2)), torch.full((1, 2), 0.5))
    for kind in GRADIENTS.values():
        gradient = kind(LinearTask(Linear(), None), torch.zeros(0))
        _, gradient_P, products_RP = gradient.with_hessian(
            torch.ones(1).double(), batch, torch.ones(2, 1).double()
        )
        assert (gradient_P.tolist(), products_RP.tolist()) == ([1.0], [[0.0], [0.0]])


# ------------------------------------------------------------------------------------------------ fisher


def test_fisher_is_an_explicit_loop_over_mini_batches(lab: Any, engine: str) -> None:
    """Two rounds of one client on least squares, in NumPy: three mini-batches a step, and a ridge."""
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
        plan = update.schedule().plan(np.array([9]), np.array([0]), server_round, 0)
        rows = plan.index_SKCB[0, 0]
        g_C = np.array([x[b].T @ (x[b] @ w - y[b]) / len(b) for b in rows])
        h = beta * h + (1 - beta) * ((g_C**2).mean(0) + mu)
        assert (h > eta).any() or server_round == 1
        q = dual + g_C.mean(0) + mu * w
        step = -q / (sigma + rho * np.minimum(h, eta))
        dual = dual + sigma * step
        w = w + step + dual / sigma
    assert lab.relative(federation.params, torch.from_numpy(w)) <= 1e-13
    assert lab.relative(federation.states()[0]["curvature"], torch.from_numpy(h)) <= 1e-13
