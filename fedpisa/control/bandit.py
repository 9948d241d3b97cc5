"""The simplest environments: one step, and a reward that is best for one action."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from fedpisa.control.environments import Environment, Floats, Moved


@final
@dataclass(frozen=True)
class Bandit(Environment):
    """One step with the reward ``-c (a - a_best)^2``. The observation is always 1, and nothing is random.

    Parameters
    ----------
    best
        The best action.
    curvature
        ``c``.

    Examples
    --------
    >>> bandit = Bandit(best=2.0, curvature=0.5)
    >>> bandit.reset(seed=0).tolist(), bandit.step(np.array([4.0]))[1:]
    ([1.0], (-2.0, True, False))
    """

    best: float
    curvature: float

    def reset(self, seed: int) -> Floats:
        """Return the observation."""
        return np.ones(1)

    def step(self, action: Floats) -> Moved:
        """Return the action's reward, which ends the episode."""
        return Moved(np.ones(1), -self.curvature * (float(action[0]) - self.best) ** 2, True, False)
