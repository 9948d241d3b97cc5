"""Written-out gradients of chains of layers equal PyTorch's autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from fedpisa.clients.base import MiniBatches
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.simulation.stacked.sequential import SequentialGradient, sequential_gradient
from fedpisa.tasks.base import Task
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.losses import sample_losses
from fedpisa.tasks.supervised import supervised

CLIENTS, SAMPLES = 3, 5


def dense() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 7, bias=False), nn.Tanh()),
        nn.Linear(7, 6),
        nn.Sigmoid(),
        nn.Identity(),
        nn.Linear(6, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def convolutional() -> nn.Module:
    body = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.Tanh(), nn.AvgPool2d(1), nn.Flatten())
    return nn.Sequential(body, *second, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


def only_a_body() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())


def activated_first() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Tanh(), nn.ReLU(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "dense": dense,
    "activated first": activated_first,
    "convolutional": convolutional,
    "only a body": only_a_body,
}


def task_of(build: Callable[[], nn.Module]) -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return supervised(build().double(), num_classes=3)


def batch_of(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return mini-batches; the last client's has two real samples and an infinite padding row."""
    x = torch.randn(CLIENTS, SAMPLES, 1, 8, 8, generator=generator, dtype=torch.float64)
    y_SB = torch.randint(0, 3, (CLIENTS, SAMPLES), generator=generator)
    weight_SB = torch.rand(CLIENTS, SAMPLES, generator=generator, dtype=torch.float64) + 0.1
    weight_SB[-1, 2:] = 0
    x[-1, 3] = torch.inf
    return x, y_SB, weight_SB


def by_autograd(
    task: Task, params_P: Tensor, x: Tensor, y_B: Tensor, weight_B: Tensor
) -> tuple[Tensor, Tensor]:
    point_P, real_B = params_P.detach().requires_grad_(), weight_B > 0
    outputs = functional_call(task.module, task.layout.unflatten(point_P), (x[real_B],))
    loss = (weight_B[real_B] * sample_losses("cross-entropy", outputs, y_B[real_B])).sum()
    return loss.detach(), torch.autograd.grad(loss, point_P)[0]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", CHAINS)
def test_it_is_the_gradient(name: str, shared: bool) -> None:
    task, generator = task_of(CHAINS[name]), torch.Generator().manual_seed(1)
    x, y_SB, weight_SB = batch_of(generator)
    chain = sequential_gradient(task, x[0])
    assert chain is not None
    if name in ("dense", "activated first"):
        x[-1, 3] = 1e6  # a matrix product with infinite rows is not finite
    params_SP = task.initial_params().repeat(1 if shared else CLIENTS, 1)
    params_SP += 0.1 * torch.randn(params_SP.shape, generator=generator, dtype=torch.float64)

    def gradient(params_P: Tensor, *batch: Tensor) -> tuple[Tensor, Tensor]:
        return StackedGradient(task, torch.zeros(0), chain)(
            params_P, MiniBatches(*(part[None] for part in batch))
        )

    losses_S, gradients_SP = vmap(gradient, in_dims=(None if shared else 0, 0, 0, 0))(
        params_SP[0] if shared else params_SP, x, y_SB, weight_SB
    )
    for s in range(CLIENTS):
        params_P = params_SP[0 if shared else s]
        loss, gradient_P = by_autograd(task, params_P, x[s], y_SB[s], weight_SB[s])
        torch.testing.assert_close(losses_S[s], loss, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(gradients_SP[s], gradient_P, rtol=1e-12, atol=1e-12)
        alone = gradient(params_P, x[s], y_SB[s], weight_SB[s])[1]
        torch.testing.assert_close(alone, gradient_P, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("num_classes", "outputs"), [(None, 1), (2, 1), (2, 2)])
def test_it_knows_every_loss(num_classes: int | None, outputs: int) -> None:
    torch.manual_seed(0)
    task = supervised(nn.Linear(4, outputs).double(), num_classes)
    x, y_SB = torch.randn(1, 6, 4, dtype=torch.float64), torch.tensor([[0, 1, 1, 0, 1, 0]])
    y_SB = y_SB.double() if num_classes is None else y_SB
    weight_SB = torch.full((1, 6), 1 / 6, dtype=torch.float64)
    point_P = task.initial_params().requires_grad_()
    made = functional_call(task.module, task.layout.unflatten(point_P), (x[0],))
    loss = sample_losses(task.closed_form(outputs), made, y_SB[0]).mean()
    batch = MiniBatches(x, y_SB, weight_SB)
    chain = sequential_gradient(task, x[0])
    assert chain is not None
    found, gradient_P = StackedGradient(task, torch.zeros(0), chain)(point_P.detach(), batch)
    torch.testing.assert_close(found, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient_P, torch.autograd.grad(loss, point_P)[0], rtol=1e-12, atol=1e-12)


def test_a_relu_behind_its_pooling_changes_no_bit() -> None:
    """ReLU after pooling gives the same bits, also for negative windows, ties and padding."""
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), nn.Flatten(), nn.Linear(18, 3)
    ).double()
    chain = SequentialGradient.of(module, ParamLayout.of_parameters(module))
    assert chain is not None
    assert [type(layer).__name__ for layer in chain.body] == ["Conv2d", "MaxPool2d", "ReLU", "Flatten"]
    x = torch.randint(-3, 3, (7, 1, 8, 8), generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        module[0].weight.fill_(
            1
        )  # integers: windows have ties, and nearly all of the second channel is negative
        module[0].bias.copy_(torch.tensor([0.0, -8.0]))
    slope = torch.rand(7, 18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for body in (module[:4], chain.body):
        made = body(x)
        found.append(
            [made.detach(), *torch.autograd.grad((made * slope).sum(), list(module[0].parameters()))]
        )
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


def tied() -> nn.Module:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    return nn.Sequential(first, second)


def partly_frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module[1].register_forward_hook(lambda layer, inputs, output: 2 * output)
    return module


class Twice(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


@pytest.mark.parametrize(
    "build",
    [
        tied,
        partly_frozen,
        hooked,
        lambda: Twice(nn.Linear(4, 4)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(0)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten()),
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
    ],
)
def test_what_does_more_than_its_layers_is_none(build: Callable[[], nn.Module]) -> None:
    module = build()
    assert SequentialGradient.of(module, ParamLayout.of_parameters(module)) is None
