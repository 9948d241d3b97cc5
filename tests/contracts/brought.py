"""Models and partitioners as users write them; a run's configuration names each function."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

WIDTH = 16


class Net(nn.Module):
    """Two layers on the flattened image. Other models in this file derive from it."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(64, WIDTH)
        self.last = nn.Linear(WIDTH, num_outputs)

    def forward(self, x: Tensor) -> Any:
        return self.last(torch.relu(self.first(x.flatten(1))))


class WritesInput(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.sub_(0.5).mul_(2.0))


class KeepsInput(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.sub(0.5).mul(2.0))


class WritesParameters(Net):
    def forward(self, x: Tensor) -> Any:
        self.first.weight.data.mul_(0.9)
        return super().forward(x)


class DrawsByNumpy(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (0.5 + float(np.random.rand()))  # noqa: NPY002


class DrawsByRandom(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) * (0.5 + random.random())


class DrawsByTorch(Net):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x) + 0.1 * torch.randn(())


class PairInTraining(Net):
    def forward(self, x: Tensor) -> Any:
        outputs = super().forward(x)
        return (outputs, outputs) if self.training else outputs


class Tied(Net):
    def __init__(self, num_outputs: int) -> None:
        super().__init__(num_outputs)
        self.a, self.b = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.b.weight = self.a.weight
        self.register_buffer("offset", torch.linspace(0, 1, WIDTH), persistent=False)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.b(self.a(torch.relu(self.first(x.flatten(1)))) + self.offset))


def with_batchnorm(num_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Linear(WIDTH, num_outputs)
    )


def lazy(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(WIDTH), nn.ReLU(), nn.LazyLinear(num_outputs))


def scripted(num_outputs: int) -> Any:
    return torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(64, num_outputs)))


def parallel(num_outputs: int) -> nn.Module:
    return nn.DataParallel(Net(num_outputs))


def frozen(num_outputs: int) -> nn.Module:
    return Net(num_outputs).requires_grad_(False)


def complex_parameter(num_outputs: int) -> nn.Module:
    net = Net(num_outputs)
    net.register_parameter("phase", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    return net


def split_as_dict(labels: Any, num_clients: int) -> Any:
    labels[:] = 0  # a partitioner may write into what it is given
    return dict(enumerate(np.array_split(np.arange(len(labels)), num_clients)))


def split_by_name(labels: Any, num_clients: int) -> Any:
    return {f"client {i}": part for i, part in enumerate(np.array_split(np.arange(len(labels)), num_clients))}


def split_lazily(labels: Any, num_clients: int) -> Any:
    return (part.tolist() for part in np.array_split(np.arange(len(labels)), num_clients))


class NotANumber(nn.Module):
    """A model whose outputs are NaN for some samples in evaluation."""

    def __init__(self, num_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(64, num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        outputs: torch.Tensor = self.linear(x.flatten(1))
        return outputs if self.training else torch.where(x.flatten(1)[:, 2:3] > 0.3, torch.nan, outputs)
