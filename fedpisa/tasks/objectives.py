"""What a policy is to learn: the tasks ``ppo`` and ``a2c``.

Shapes: ``B`` samples of a mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, final

from torch import Tensor

from fedpisa.control.losses import a2c_loss, actor_critic_loss, ppo_loss
from fedpisa.control.policies import Policy
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.playing import Play
from fedpisa.typing import NonNegative, NonNegativeFloat

RETURN: Final = Measure("return", "return", higher_is_better=True)
WORST: Final = Measure("return_worst", "return of the worst client", higher_is_better=True)
_OF_PPO: Final = Play()
_OF_A2C: Final = Play(rollout_every=1, normalize_advantage=False)


@final
@dataclass(frozen=True)
class Objective:
    """What a policy is to learn.

    Parameters
    ----------
    play
        How clients play.
    clip_ratio
        PPO's bound; ``None`` for the loss of A2C.
    value_weight, entropy_weight
        Weights of the value's loss and of the policy's entropy.
    """

    play: Play
    clip_ratio: float | None
    value_weight: float
    entropy_weight: float

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The mean return over the clients and the return of the worst one."""
        return RETURN, WORST

    def loss(self, policy: Policy, outputs: Tensor, y: Tensor) -> Tensor:
        """Return each sample's loss ``(B,)`` from a network's outputs; `fedpisa.tasks.playing.Rollout` has ``y``."""
        parameters, value_B = outputs[:, :-1], outputs[:, -1]
        action, (old_B, advantage_B, return_B) = y[:, :-3], y[:, -3:].unbind(-1)
        log_prob_B = policy.log_prob(parameters, action)
        if self.clip_ratio is None:
            policy_B = a2c_loss(log_prob_B, advantage_B)
        else:
            policy_B = ppo_loss(log_prob_B, old_B, advantage_B, self.clip_ratio)
        entropy_B, weights = policy.entropy(parameters), (self.value_weight, self.entropy_weight)
        return actor_critic_loss(policy_B, value_B, return_B, entropy_B, *weights)


def ppo(
    *,
    play: Play = _OF_PPO,
    clip_ratio: NonNegative = 0.2,
    value_weight: NonNegativeFloat = 0.25,
    entropy_weight: NonNegativeFloat = 0.0,
) -> Objective:
    """Proximal policy optimization (PPO): one policy for the environments of all clients.

    A client acts with the broadcast policy, and its steps are the samples of the next ``rollout-every`` rounds. The
    loss of a step with action ``a``, advantage ``A`` and return ``R`` is
    ``-min(r A, clip(r, 1 - c, 1 + c) A) + c_v (R - V)^2 - c_e H``, where ``r`` is the probability of ``a`` over that at
    the time of the step, ``V`` the value and ``H`` the policy's entropy.

    Parameters
    ----------
    clip_ratio
        ``c``, the change of a probability beyond which an action's loss is constant; ``inf`` for no bound.
    value_weight
        ``c_v``, the weight of the value's squared error.
    entropy_weight
        ``c_e``, the weight of the policy's entropy.

    References
    ----------
    Schulman, Wolski, Dhariwal, Radford, Klimov (2017), Proximal policy optimization algorithms.
    """
    return Objective(play, clip_ratio, value_weight, entropy_weight)


def a2c(
    *,
    play: Play = _OF_A2C,
    value_weight: NonNegativeFloat = 0.5,
    entropy_weight: NonNegativeFloat = 0.01,
) -> Objective:
    """Advantage actor-critic (A2C): one policy for the environments of all clients.

    As ``ppo``, with ``-log pi(a) A`` as the policy's loss. Its gradient is that of the return for the policy which took
    the steps, not for one that has moved on.

    Parameters
    ----------
    value_weight
        ``c_v``, the weight of the value's squared error.
    entropy_weight
        ``c_e``, the weight of the policy's entropy.

    References
    ----------
    Mnih et al. (2016), Asynchronous methods for deep reinforcement learning.
    """
    return Objective(play, None, value_weight, entropy_weight)
