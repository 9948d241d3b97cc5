"""Policies: distributions of actions, given by a network's outputs.

Shapes: ``B`` states, ``A`` numbers of a continuous action, ``n`` discrete actions. All functions take any leading axes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Final, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
_HALF_LOG_2_PI: Final = 0.5 * math.log(2 * math.pi)


class Policy(ABC):
    """A distribution of actions ``(B, action_size)``, of which a network gives ``(B, num_outputs)`` parameters."""

    @property
    @abstractmethod
    def num_outputs(self) -> int:
        """Number of parameters of a state's distribution."""

    @property
    @abstractmethod
    def action_size(self) -> int:
        """Number of numbers that an action is."""

    @abstractmethod
    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Return the logarithm of each action's probability, or of its density, ``(B,)``."""

    @abstractmethod
    def entropy(self, outputs: Tensor) -> Tensor:
        """Return each distribution's entropy ``(B,)``."""

    @abstractmethod
    def noise(self, rng: np.random.Generator, size: int) -> Floats:
        """Return what `sample` needs to draw ``size`` actions."""

    @abstractmethod
    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return actions ``(B, action_size)`` as a function of the noise."""

    @abstractmethod
    def best(self, outputs: Tensor) -> Tensor:
        """Return the most probable actions ``(B, action_size)``."""


@final
@dataclass(frozen=True)
class Gaussian(Policy):
    """Independent normal distributions; the outputs are ``A`` means and then ``A`` logarithms of deviations.

    Examples
    --------
    >>> policy, outputs = Gaussian(1), torch.tensor([[2.0, 0.0]])
    >>> policy.sample(outputs, torch.tensor([[0.5]])), policy.best(outputs)
    (tensor([[2.5000]]), tensor([[2.]]))
    >>> policy.log_prob(outputs, torch.tensor([[2.0]]))
    tensor([-0.9189])
    """

    size: int

    @property
    def num_outputs(self) -> int:
        """``2 A``."""
        return 2 * self.size

    @property
    def action_size(self) -> int:
        """``A``."""
        return self.size

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Return ``sum_a -(a - m)^2 / (2 s^2) - log s - log(2 pi) / 2``."""
        mean, log_std = self._parameters(outputs)
        z = (action - mean) * (-log_std).exp()
        log_prob: Tensor = (-0.5 * z.square() - log_std - _HALF_LOG_2_PI).sum(-1)
        return log_prob

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return ``sum_a log s + log(2 pi e) / 2``."""
        return (outputs[..., self.size :] + (0.5 + _HALF_LOG_2_PI)).sum(-1)

    def noise(self, rng: np.random.Generator, size: int) -> Floats:
        """Return standard normal numbers ``(size, A)``."""
        return rng.standard_normal((size, self.size))

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return ``m + s noise``."""
        mean, log_std = self._parameters(outputs)
        return mean + log_std.exp() * noise

    def best(self, outputs: Tensor) -> Tensor:
        """Return the means."""
        return outputs[..., : self.size]

    def _parameters(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and the logarithms of the deviations."""
        return outputs[..., : self.size], outputs[..., self.size :]


@final
@dataclass(frozen=True)
class Categorical(Policy):
    """One of ``n`` actions; the outputs are logits, and an action is its number.

    Examples
    --------
    >>> policy, outputs = Categorical(2), torch.tensor([[0.0, 0.0]])
    >>> policy.sample(outputs, torch.tensor([[0.7]])), policy.log_prob(outputs, torch.tensor([[1.0]]))
    (tensor([[1.]]), tensor([-0.6931]))
    """

    size: int

    @property
    def num_outputs(self) -> int:
        """``n``."""
        return self.size

    @property
    def action_size(self) -> int:
        """1."""
        return 1

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Return the actions' logarithmic probabilities."""
        return outputs.log_softmax(-1).gather(-1, action.long()).squeeze(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """Return ``-sum p log p``."""
        log_p = outputs.log_softmax(-1)
        return -(log_p.exp() * log_p).sum(-1)

    def noise(self, rng: np.random.Generator, size: int) -> Floats:
        """Return uniform numbers ``(size, 1)``."""
        return rng.random((size, 1))

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Return the first actions whose cumulative probability is above the noise."""
        below = outputs.softmax(-1).cumsum(-1)[..., :-1] <= noise
        return below.sum(-1, keepdim=True).to(outputs.dtype)

    def best(self, outputs: Tensor) -> Tensor:
        """Return the most probable actions; the first of equal ones."""
        return outputs.argmax(-1, keepdim=True).to(outputs.dtype)


@cache
def normal_grid(size: int) -> tuple[float, ...]:
    """Return a symmetric grid of ``size`` equally likely numbers with moments of the standard normal distribution.

    Beside the odd moments, which are 0, the variance is 1. With at least 16 numbers the 4th moment is the normal
    distribution's too, and with 32 the 6th. The mean of a polynomial of low degree over the grid is its expectation.

    Raises
    ------
    ValueError
        For an odd number, which has no symmetric half.

    Examples
    --------
    >>> normal_grid(2), round(sum(x**4 for x in normal_grid(64)) / 64, 9)
    ((-1.0, 1.0), 3.0)
    """
    if size % 2:
        raise ValueError(f"a grid of {size} numbers: give an even number")
    powers = 2.0 * np.arange(1, min(1 + size // 16, 3) + 1)
    wanted = np.cumprod(powers - 1)
    half = torch.special.ndtri((torch.arange(size // 2, dtype=torch.float64) + 0.5) / size).numpy()
    for _ in range(50):  # Newton's method: the shortest step that corrects the moments
        slope = powers[:, None] * half ** (powers[:, None] - 1) * (2 / size)
        missing = wanted - 2 / size * (half ** powers[:, None]).sum(1)
        half = half + np.linalg.pinv(slope) @ missing
    return (*half.tolist(), *(-half[::-1]).tolist())
