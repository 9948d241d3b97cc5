"""Fused SGD steps, which store no gradient, equal separate steps in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, final

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import vmap

from fedpisa.clients.base import Arrays, Gradient, MiniBatches
from fedpisa.clients.fedadmm import FedADMMUpdate
from fedpisa.clients.feddr import FedDRUpdate
from fedpisa.clients.feddyn import FedDynUpdate
from fedpisa.clients.fednova import NormalisedSGDUpdate
from fedpisa.clients.fedpd import FedPDUpdate
from fedpisa.clients.fedprox import ProximalSGDUpdate
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.clients.moon import MoonUpdate
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.scaffnew import ScaffnewUpdate
from fedpisa.clients.scaffold import ScaffoldUpdate
from fedpisa.clients.sgd import LocalSGDUpdate, SGDSteps
from fedpisa.simulation.stacked.fused_sgd import is_fusible, take_fused_steps
from fedpisa.simulation.stacked.sequential import SequentialGradient, Sum
from fedpisa.tasks.base import Task
from fedpisa.tasks.supervised import supervised

CLIENTS, STAYING, SAMPLES = 3, 2, 5
UPDATES: tuple[type[Any], ...] = (
    LocalSGDUpdate,
    NormalisedSGDUpdate,
    ProximalSGDUpdate,
    ScaffoldUpdate,
    ScaffnewUpdate,
    FedDynUpdate,
    FedADMMUpdate,
    FedDRUpdate,
    FedPDUpdate,
)
ZERO_OR_SOME = st.just(0.0) | st.floats(0.05, 0.95)
OPTIONS = st.fixed_dictionaries(
    {"learning_rate": st.floats(0.01, 0.3), "momentum": ZERO_OR_SOME, "weight_decay": ZERO_OR_SOME}
)


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 7, bias=False), nn.Tanh(), nn.Linear(7, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3))


@contextmanager
def nothing_is_zero_by_chance() -> Iterator[None]:
    """Fill uninitialised memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def numbers(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def batches_of(generator: torch.Generator, clients: int, steps: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return each step's mini-batches; the last client's have only two real samples."""
    batches = []
    for _ in range(steps):
        x, y_SB = (
            numbers(generator, clients, SAMPLES, 1, 6, 6),
            torch.randint(0, 3, (clients, SAMPLES), generator=generator),
        )
        weight_SB = torch.full((clients, SAMPLES), 1 / SAMPLES, dtype=torch.float64)
        weight_SB[-1] = torch.tensor([0.5, 0.5, 0, 0, 0])
        batches.append((x, y_SB, weight_SB))
    return batches


def step_by_step(
    update: SGDSteps, task: Task, down: Arrays, state: Arrays, work: Arrays, batches: list[tuple[Tensor, ...]]
) -> tuple[Arrays, Tensor]:
    """Take one client's steps by `SGDSteps.step` and PyTorch's autograd."""
    loss = torch.zeros((), dtype=torch.float64)
    for x, y_B, weight_B in batches:
        gradient = AutogradGradient(task, torch.zeros(0))
        work = update.step(gradient, down, state, work, MiniBatches(x[None], y_B[None], weight_B[None]))
        assert gradient.loss is not None
        loss = loss + gradient.loss
    return work, loss


@settings(max_examples=15, deadline=None)
@given(
    options=OPTIONS,
    proximal=st.none() | st.floats(0.0, 1.0),
    steps=st.tuples(st.integers(1, 4), st.integers(0, 4), st.integers(0, 4)),
    seed=st.integers(0, 2**32 - 1),
)
@pytest.mark.parametrize("build", [dense, convolutional])
@pytest.mark.parametrize("kind", UPDATES)
def test_it_takes_the_steps(
    kind: Callable[..., SGDSteps],
    build: Callable[[], nn.Module],
    options: dict[str, float],
    proximal: float | None,
    steps: tuple[int, int, int],
    seed: int,
) -> None:
    """Fused steps equal separate steps from any state, with padding and different numbers of steps."""
    generator, update = torch.Generator().manual_seed(seed), kind(**options)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = supervised(build().double(), num_classes=3)
    chain, size = SequentialGradient.of(task.module, task.layout), task.layout.size
    assert chain is not None
    assert is_fusible(update)
    down = {
        "params": numbers(generator, size),
        "control": numbers(generator, size),
    }
    if proximal is not None:
        down["proximal-mu"] = torch.tensor(proximal, dtype=torch.float64)
    state = {
        name: numbers(generator, CLIENTS, *value.shape).abs()
        for name, value in update.init(down["params"]).items()
    }
    work: Arrays = vmap(lambda _: update.start(down, {}))(torch.zeros(CLIENTS))
    # All clients step first, then those with more steps, then the one with most.
    batches = [
        batch
        for active, count in zip((CLIENTS, STAYING, 1), steps, strict=True)
        for batch in batches_of(generator, active, count)
    ]
    with torch.no_grad(), nothing_is_zero_by_chance():
        after, loss_S = take_fused_steps(update, chain, task.closed_form, down, state, work, batches)
    for s in range(CLIENTS):
        own_batches = [tuple(part[s] for part in batch) for batch in batches if s < len(batch[0])]
        own_state, own_work = ({name: value[s] for name, value in arrays.items()} for arrays in (state, work))
        wanted, loss = step_by_step(update, task, down, own_state, own_work, own_batches)
        torch.testing.assert_close(loss_S[s], loss, rtol=1e-12, atol=1e-12)
        assert after.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(after[name][s], value, rtol=1e-12, atol=1e-12)


def test_only_sgd_along_the_losss_gradient_descends() -> None:
    """An update is not fusible if it differentiates more than the loss or overrides the step."""

    @final
    class Halved(SGDSteps):
        def step(
            self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
        ) -> Arrays:
            return {**super().step(gradient, down, state, work, batch), "drift": work["drift"] / 2}

        batch_sampler = LocalSGDUpdate.batch_sampler  # type: ignore[assignment]
        finish = LocalSGDUpdate.finish  # type: ignore[assignment]

    assert is_fusible(LocalSGDUpdate())
    assert not any(is_fusible(update) for update in (MoonUpdate(), PisaUpdate(), Halved()))


@pytest.mark.parametrize(("beta", "wanted"), [(0.0, -6.0), (1.0, -4.0), (0.5, -5.0)])
def test_a_sum_with_beta_zero_forgets(beta: float, wanted: float) -> None:
    """``beta total + alpha gradient`` with total 2, alpha -1, gradient 6; beta 0 also discards NaN."""
    start = torch.full((2, 3, 3), 2.0 if beta else torch.nan)
    into = Sum({"sum": start.clone(), "product": start.clone()}, alpha=-1.0, beta=beta)
    into.add("sum", torch.full((2, 3, 3), 6.0))
    into.add_product("product", torch.full((2, 3, 2), 3.0), torch.ones(2, 2, 3))
    for total in into.total.values():
        assert total.tolist() == torch.full((2, 3, 3), wanted).tolist()
