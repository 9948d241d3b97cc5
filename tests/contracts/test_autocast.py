"""Autocast computes gradients with 16 bits and keeps the parameters' dtype."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedpisa
from fedpisa.clients.base import MiniBatches
from fedpisa.clients.gradients import AutogradGradient
from fedpisa.simulation.stacked.gradients import StackedGradient
from fedpisa.tasks.supervised import supervised

BFLOAT16 = 2.0**-8
"""Half the distance of neighbouring numbers around 1."""


@pytest.mark.parametrize("gradient", [AutogradGradient, StackedGradient])
def test_its_gradient_has_the_precision_of_bfloat16(gradient: type) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
        x, y_B = torch.randn(1, 64, 4, 4), torch.randint(0, 3, (1, 64))
    batch = MiniBatches(x, y_B, torch.full((1, 64), 1 / 64))
    found = {}
    for autocast in (False, True):
        task = supervised(module, num_classes=3, autocast=autocast)
        found[autocast] = gradient(task, torch.zeros(0))(task.initial_params(), batch)
        assert all(value.dtype == torch.float32 for value in found[autocast])
    distance = (found[True][1] - found[False][1]).norm() / found[False][1].norm()
    assert BFLOAT16 / 10 < distance < 10 * BFLOAT16


def test_a_run_learns_with_it(engine: str) -> None:
    config = {
        "model": "mlp",
        "algorithm": "fedavg",
        "num-server-rounds": 5,
        "num-clients": 3,
        "engine": engine,
    }
    exact, rounded = (fedpisa.run({**config, "autocast": kind}) for kind in ("none", "bfloat16"))
    assert any((value != exact.parameters[name]).any() for name, value in rounded.parameters.items())
    assert all(value.dtype == "float32" for value in rounded.parameters.values())
    assert rounded.last("test_accuracy") == pytest.approx(exact.last("test_accuracy"), abs=0.03)
