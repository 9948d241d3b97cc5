"""Networks of actor-critic methods."""

from __future__ import annotations

import itertools
import math
from typing import Final, final

import torch
from torch import Tensor, nn

from fedpisa.typing import Finite, PositiveInt

_HIDDEN_GAIN: Final = math.sqrt(2.0)
_POLICY_GAIN: Final = 0.01


def actor_critic(
    shape: tuple[int, ...],
    num_outputs: int,
    *,
    num_log_stds: int = 0,
    hidden_widths: tuple[PositiveInt, ...] = (64, 64),
    initial_log_std: Finite = -0.5,
) -> nn.Module:
    """Two perceptrons with tanh, one for the policy and one for the value; for reinforcement learning.

    Weights start orthogonal: with gain sqrt(2) in the hidden layers, 0.01 before the policy and 1 before the value.
    Biases start at 0. The deviations of continuous actions do not depend on the state.

    Parameters
    ----------
    shape
        Shape of an observation.
    num_outputs
        Number of the policy's parameters and the value.
    num_log_stds
        Number of the policy's parameters, the last ones, that are logarithms of deviations.
    hidden_widths
        Width of each hidden layer.
    initial_log_std
        Logarithm of the deviations at the beginning.

    Examples
    --------
    >>> model = actor_critic((9,), 3, num_log_stds=1)
    >>> sum(p.numel() for p in model.parameters()), model(torch.zeros(2, 9)).shape
    (9731, torch.Size([2, 3]))
    """
    return ActorCritic(
        math.prod(shape), num_outputs - 1 - num_log_stds, num_log_stds, hidden_widths, initial_log_std
    )


@final
class ActorCritic(nn.Module):
    """The policy's parameters and the value of each state, side by side; see `actor_critic`."""

    def __init__(
        self, inputs: int, actions: int, num_log_stds: int, widths: tuple[int, ...], initial_log_std: float
    ) -> None:
        super().__init__()
        self.policy = _perceptron((inputs, *widths, actions), _POLICY_GAIN)
        self.value = _perceptron((inputs, *widths, 1), 1.0)
        stds = torch.full((num_log_stds,), initial_log_std)
        self.log_std = nn.Parameter(stds) if num_log_stds else None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, num_outputs)``: the policy's parameters and then the value."""
        parts = [self.policy(x), self.value(x)]
        if self.log_std is not None:
            parts.insert(1, self.log_std.expand(len(x), -1))
        return torch.cat(parts, -1)


def _perceptron(sizes: tuple[int, ...], last_gain: float) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    last = len(sizes) - 2
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(inputs, outputs)
        nn.init.orthogonal_(linear.weight, last_gain if number == last else _HIDDEN_GAIN)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])
