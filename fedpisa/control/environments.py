"""Environments, in which a client's policy acts, and what the clients of a run have of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod
from typing import Final, NamedTuple, final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KEPT_CLIENTS: Final = 64
"""Number of clients whose environments stay in memory, those that are asked for first.

The latest ones would never be found again where more clients play in turn.
"""


class Moved(NamedTuple):
    """What a step of an environment gives.

    Parameters
    ----------
    observation
        The state after the step, before any reset.
    reward
        The step's reward.
    terminated, truncated
        Whether the episode has ended, and whether it is cut off; see `fedpisa.control.advantages`.
    """

    observation: Floats
    reward: float
    terminated: bool
    truncated: bool


class Environment(ABC):
    """One environment. After a reset nothing depends on what was before: the seed and the actions decide all."""

    @abstractmethod
    def reset(self, seed: int) -> Floats:
        """Begin an episode, whose chances the seed decides, and return the first observation."""

    @abstractmethod
    def step(self, action: Floats) -> Moved:
        """Take an action ``(A,)``; a discrete one is its number ``(1,)``."""


@final
@dataclass(frozen=True)
class Environments:
    """The clients' environments: every client has ``num_envs`` copies of its own.

    Parameters
    ----------
    make
        Function that returns a new environment of a client, given its number.
    num_clients
        ``N``.
    observation_shape
        Shape of an observation.
    num_actions
        Number of discrete actions, or of the numbers of a continuous one.
    discrete
        Whether actions are discrete.
    num_envs
        Number of environments in which a client acts side by side.
    rollout_steps
        Number of steps that a client takes in each of them at a time.

    Examples
    --------
    >>> few = Environments(lambda client: None, 2, (4,), 3, False, num_envs=2, rollout_steps=5)
    >>> few.num_samples, few.num_outputs, few.num_log_stds
    (10, 7, 3)
    """

    make: Callable[[int], Environment]
    num_clients: int
    observation_shape: tuple[int, ...]
    num_actions: int
    discrete: bool
    num_envs: int = 4
    rollout_steps: int = 128
    of: Callable[[int], list[Environment]] = field(init=False, repr=False, compare=False)
    """Function that returns a client's environments, which others may have used."""

    def __post_init__(self) -> None:
        kept: dict[int, list[Environment]] = {}

        def of(client: int) -> list[Environment]:
            found = kept.get(client) or [self.make(client) for _ in range(self.num_envs)]
            if len(kept) < KEPT_CLIENTS:
                kept[client] = found
            return found

        object.__setattr__(self, "of", of)
        if not prod(self.observation_shape) or not self.observation_shape:
            raise ValueError(
                f"an observation has shape {self.observation_shape}: give at least one number, as an array"
            )

    @property
    def num_samples(self) -> int:
        """Number of a client's steps at a time, in all its environments."""
        return self.num_envs * self.rollout_steps

    @property
    def num_log_stds(self) -> int:
        """Number of the policy's parameters that are logarithms of deviations."""
        return 0 if self.discrete else self.num_actions

    @property
    def num_outputs(self) -> int:
        """Number of a network's outputs: the policy's parameters and the value of the state."""
        return self.num_actions + self.num_log_stds + 1
