"""Reinforcement learning with a known answer: environments of one step, and a policy that is one number.

The expected reward ``-c_i ((m - a_i)^2 + s^2)`` of a normal action around ``m`` is a quadratic, and with the grid of
noise a rollout has the expectation instead of an estimate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fedpisa
from fedpisa.datasets.environments import bandit

N, NOISE = 3, 32
LOG_STD = 2.5


class Mean(nn.Module):
    """A policy that is one number, with a fixed deviation and the value 0 everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        rest = torch.tensor([LOG_STD, 0.0]).to(x).expand(len(x), -1)
        return torch.cat([self.mean.expand(len(x), -1), rest], -1)


def mean(shape: tuple[int, ...], num_outputs: int) -> nn.Module:
    return Mean()


def keys(**more: object) -> dict[str, Any]:
    base: dict[str, object] = {
        "dataset": "bandit",
        "partitioner": "natural",
        "num-clients": N,
        "num-envs": NOISE,
        "rollout-steps": 1,
        "action-noise": "grid",
        "observation-norm": "none",
        "normalize-advantage": False,
        "rollout-every": 1,
        "entropy-weight": 0.0,
        "model": f"{__name__}:mean",
        "batch-size": "full",
        "dtype": "float64",
        "eval-every": 1000,
    }
    return base | {name.replace("_", "-"): value for name, value in more.items()}


def reached(**more: object) -> float:
    (value,) = fedpisa.run(keys(**more)).parameters.values()
    return float(value.item())


TRUTH = bandit(seed=0, num_clients=N).ground_truth
BEST, CURVATURE = np.array(TRUTH["client-optima"]), np.array(TRUTH["curvatures"])


@pytest.mark.parametrize("engine", ["loop", "vmap"])
@pytest.mark.parametrize("task", ["a2c", "ppo"])
def test_pisa_reaches_the_best_action_for_all_clients(task: str, engine: str) -> None:
    found = reached(task=task, engine=engine, algorithm="pisa", sigma=1.0, rho=3.0, num_server_rounds=150)
    optimum = CURVATURE @ BEST / CURVATURE.sum()
    assert optimum == pytest.approx(TRUTH["optimum"])
    assert abs(found - optimum) < 1e-8


def test_local_steps_of_ppo_are_biased_by_a_known_amount() -> None:
    """Without a clip, the ratio corrects the steps for the policy's change: each local step is one on the quadratic."""
    steps, rate = 4, 0.02
    found = reached(
        task="ppo",
        clip_ratio=float("inf"),
        algorithm="fedavg",
        local_steps=steps,
        learning_rate=rate,
        num_server_rounds=120,
    )
    share = 1 - (1 - 2 * rate * CURVATURE) ** steps
    biased = share @ BEST / share.sum()
    assert abs(found - biased) < 1e-8
    assert abs(biased - TRUTH["optimum"]) > 1e-3


def test_local_steps_of_a2c_repeat_the_first_one() -> None:
    """A2C does not see that the policy moves on, so its steps have one mean direction, that of the optimum.

    With advantages of mean 0, the local gradient is constant within a round.
    """
    found = reached(
        task="a2c",
        normalize_advantage=True,
        algorithm="fedavg",
        local_steps=4,
        learning_rate=0.02,
        num_server_rounds=3,
    )
    wanted = 0.0
    spread = np.exp(LOG_STD)
    for _ in range(3):
        gap = wanted - BEST
        # Variance of c (gap + s e)^2 with Var(e) = 1 and Var(e^2) = 2.
        deviation = CURVATURE * np.sqrt(4 * gap**2 * spread**2 + 2 * spread**4)
        wanted -= 4 * 0.02 * float(np.mean(2 * CURVATURE * gap / (deviation + 1e-8)))
    assert found == pytest.approx(wanted, rel=1e-10)


def test_a_gradient_is_that_of_the_expected_reward() -> None:
    rate = 0.1
    for task in ("a2c", "ppo"):
        found = reached(task=task, algorithm="fedsgd", learning_rate=rate, num_server_rounds=1)
        assert found == pytest.approx(rate * float(np.mean(2 * CURVATURE * BEST)), rel=1e-12)


def test_the_returns_of_an_evaluation() -> None:
    history = fedpisa.run(keys(task="a2c", algorithm="fedsgd", num_server_rounds=1)).history
    returns = -CURVATURE * BEST**2  # the policy begins at 0
    assert history["test_return"].iloc[0] == pytest.approx(returns.mean())
    assert history["test_return_worst"].iloc[0] == pytest.approx(returns.min())
    assert history["env_steps"].iloc[1] == N * NOISE
