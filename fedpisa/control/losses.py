"""Losses of actor-critic methods, as functions of log-probabilities, advantages and values.

Shapes: ``B`` samples of a mini-batch. Each function returns one number for each sample; the loss is their mean.
"""

from __future__ import annotations

import torch
from torch import Tensor


def a2c_loss(log_prob_B: Tensor, advantage_B: Tensor) -> Tensor:
    """Return the policy's loss of A2C: ``-log pi(a) A``.

    References
    ----------
    Mnih et al. (2016), Asynchronous methods for deep reinforcement learning.
    """
    return -log_prob_B * advantage_B


def ppo_loss(log_prob_B: Tensor, old_log_prob_B: Tensor, advantage_B: Tensor, clip_ratio: float) -> Tensor:
    """Return the policy's clipped loss of PPO: ``-min(r A, clip(r, 1 - c, 1 + c) A)``, ``r = pi(a) / pi_old(a)``.

    Where ``r = 1`` its gradient is that of `a2c_loss`.

    References
    ----------
    Schulman, Wolski, Dhariwal, Radford, Klimov (2017), Proximal policy optimization algorithms.

    Examples
    --------
    >>> ppo_loss(torch.tensor([0.0, 1.0]), torch.zeros(2), torch.ones(2), 0.2)
    tensor([-1.0000, -1.2000])
    """
    ratio_B = (log_prob_B - old_log_prob_B).exp()
    clipped_B = ratio_B.clamp(1 - clip_ratio, 1 + clip_ratio)
    return -torch.minimum(ratio_B * advantage_B, clipped_B * advantage_B)


def actor_critic_loss(
    policy_B: Tensor,
    value_B: Tensor,
    return_B: Tensor,
    entropy_B: Tensor,
    value_weight: float,
    entropy_weight: float,
) -> Tensor:
    """Return ``policy + c_v (R - V)^2 - c_e H``: the policy's loss, the value's and the entropy's.

    Examples
    --------
    >>> actor_critic_loss(*torch.tensor([[1.0], [2.0], [4.0], [3.0]]), 0.5, 1.0)
    tensor([0.])
    """
    return policy_B + value_weight * (return_B - value_B).square() - entropy_weight * entropy_B
