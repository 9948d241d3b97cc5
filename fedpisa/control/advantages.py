"""Advantages and returns of an actor's steps, by generalised advantage estimation (GAE).

Gymnasium ends an episode for one of two reasons. A *terminated* episode has no future, so its last value is 0. A
*truncated* one was only cut off, so its future is estimated by the value of the state that it would have gone on from.

Shapes: ``T`` steps in time, ``E`` environments side by side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
_TINY: Final = 1e-8


@final
@dataclass(frozen=True)
class Steps:
    """What an actor has seen in ``T`` steps of ``E`` environments, all ``(T, E)``.

    Parameters
    ----------
    rewards_TE
        Reward of each step.
    values_TE
        Value of the state before each step.
    next_values_TE
        Value of the state after each step, before any reset.
    terminated_TE, truncated_TE
        Whether the episode ended with the step, or was cut off after it.
    """

    rewards_TE: Floats
    values_TE: Floats
    next_values_TE: Floats
    terminated_TE: Flags
    truncated_TE: Flags

    @property
    def ended_TE(self) -> Flags:
        """Whether the environment was reset after each step."""
        return self.terminated_TE | self.truncated_TE


def gae(steps: Steps, discount: float, gae_lambda: float) -> Floats:
    r"""Return the advantages ``A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}``, ``(T, E)``.

    ``delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)``. With ``lambda = 1`` and values of 0 it is the
    discounted return; with ``lambda = 0`` it is ``delta``.

    References
    ----------
    Schulman, Moritz, Levine, Jordan, Abbeel (2016), High-dimensional continuous control using generalized advantage
    estimation.

    Examples
    --------
    >>> zero, end = np.zeros((3, 1)), np.array([[False], [False], [True]])
    >>> gae(Steps(np.ones((3, 1)), zero, zero, end, zero > 0), 0.5, 1.0).ravel().tolist()
    [1.75, 1.5, 1.0]
    """
    future_TE = np.where(steps.terminated_TE, 0.0, steps.next_values_TE)
    delta_TE = steps.rewards_TE + discount * future_TE - steps.values_TE
    goes_on_TE = discount * gae_lambda * ~steps.ended_TE
    advantages_TE, last_E = np.zeros_like(delta_TE), np.zeros(delta_TE.shape[1])
    for t in reversed(range(len(delta_TE))):
        last_E = delta_TE[t] + goes_on_TE[t] * last_E
        advantages_TE[t] = last_E
    return advantages_TE


def discounted_so_far(rewards_TE: Floats, ended_TE: Flags, discount: float) -> Floats:
    """Return ``R_t = r_t + gamma R_{t-1}`` ``(T, E)``, which begins anew after the end of an episode.

    Examples
    --------
    >>> discounted_so_far(np.ones((3, 1)), np.array([[False], [True], [False]]), 0.5).ravel().tolist()
    [1.0, 1.5, 1.0]
    """
    so_far_TE, last_E = np.zeros_like(rewards_TE), np.zeros(rewards_TE.shape[1])
    for t, reward_E in enumerate(rewards_TE):
        so_far_TE[t] = last_E = reward_E + discount * last_E
        last_E = np.where(ended_TE[t], 0.0, last_E)
    return so_far_TE


def standardised(advantages: Floats) -> Floats:
    """Return the advantages with mean 0 and standard deviation 1 over all of them.

    Examples
    --------
    >>> standardised(np.array([1.0, 3.0])).round(6).tolist()
    [-1.0, 1.0]
    """
    scaled: Floats = (advantages - advantages.mean()) / (advantages.std() + _TINY)
    return scaled


def episode_returns(rewards_TE: Floats, ended_TE: Flags) -> Floats:
    """Return the sums of rewards of the episodes that end within the steps, environment by environment.

    Examples
    --------
    >>> episode_returns(np.array([[1.0], [2.0], [4.0]]), np.array([[False], [True], [False]])).tolist()
    [3.0]
    """
    sums = []
    for rewards_T, ended_T in zip(rewards_TE.T, ended_TE.T, strict=True):
        sums += [part.sum() for part in np.split(rewards_T, np.flatnonzero(ended_T) + 1)[: ended_T.sum()]]
    return np.array(sums)
