"""How a policy plays: rollouts to learn from, and episodes to be judged by.

Shapes: ``T`` steps in time, ``E`` environments side by side, ``n = T E`` steps in all, ``A`` numbers of an action.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedpisa.control.advantages import Steps, discounted_so_far, gae, standardised
from fedpisa.control.environments import Environment
from fedpisa.control.moments import Moments
from fedpisa.control.policies import Policy, normal_grid
from fedpisa.typing import Fraction, PositiveInt, Probability

Floats = NDArray[np.float64]
Network = Callable[[Floats], Tensor]
"""Function from normalised observations ``(E, *shape)`` to a network's outputs: the policy's and then the value."""
_TINY: Final = 1e-8


@final
@dataclass(frozen=True)
class Play:
    """How clients play.

    Parameters
    ----------
    rollout_every
        Number of rounds that use the same steps. A client that was absent when new ones were due makes them in its
        next round.
    restart_duals
        Whether a client's state, such as a dual and moments of gradients, begins anew with new steps.
    discount
        Factor of a reward for each step that it comes later.
    gae_lambda
        Factor of generalised advantage estimation; 1 takes the rewards of the steps as they are.
    normalize_advantage
        Whether a client's advantages get mean 0 and standard deviation 1.
    observation_norm
        Whether observations are normalised: by the moments of the client's own ones, ``personal``, or of all clients',
        ``shared``. Shared moments travel with the model, as the mean over the clients of a round.
    reward_norm
        Whether a client's rewards are divided by the standard deviation of its discounted returns, unless that is 0.
    action_noise
        What continuous actions are drawn with: normal numbers, or a ``grid`` over the environments with moments of the
        normal distribution. With the grid, a mean over environments of one step is an expectation.
    eval_episodes
        Number of episodes that the most probable actions play in each client's environment in an evaluation.
    eval_steps
        Largest number of steps of such an episode.
    """

    rollout_every: PositiveInt = 10
    restart_duals: bool = False
    discount: Fraction = 0.99
    gae_lambda: Probability = 0.95
    normalize_advantage: bool = True
    observation_norm: Literal["personal", "shared", "none"] = "personal"
    reward_norm: bool = False
    action_noise: Literal["random", "grid"] = "random"
    eval_episodes: PositiveInt = 2
    eval_steps: PositiveInt = 1000


class Rollout(NamedTuple):
    """The steps of a client, and what it knows after them.

    Parameters
    ----------
    x
        Normalised observations ``(n, *shape)``.
    y
        Action, its log-probability, advantage and return of each step ``(n, A + 3)``.
    observations, returns
        Moments of all observations so far, and of all discounted returns.
    mean_reward
        Mean reward of these steps.
    """

    x: Tensor
    y: Tensor
    observations: Moments
    returns: Moments
    mean_reward: float


def roll_out(
    play: Play,
    policy: Policy,
    network: Network,
    environments: Sequence[Environment],
    num_steps: int,
    rng: np.random.Generator,
    known: tuple[Moments, Moments],
    shared: Moments | None,
) -> Rollout:
    """Return the steps that a policy takes in environments, each begun anew.

    Parameters
    ----------
    play, policy, network
        How the policy plays, its distribution, and its network.
    environments
        ``E`` environments.
    num_steps
        ``T``.
    rng
        Generator of the episodes' seeds and of the actions' noise.
    known
        Moments of the client's observations and discounted returns before these steps.
    shared
        Moments of all clients' observations, if these normalise them.
    """
    own, returns = known
    count = len(environments)
    rewards_TE, values_TE, next_values_TE = (np.zeros((num_steps, count)) for _ in range(3))
    terminated_TE, truncated_TE = (np.zeros((num_steps, count), np.bool_) for _ in range(2))
    xs, actions, log_probs = list[Tensor](), list[Tensor](), list[Tensor]()

    def outputs_of(seen: Floats) -> tuple[Floats, Tensor]:
        x = normalised(play, own, shared, seen)
        return x, network(x)

    seen = np.stack([environment.reset(_seed(rng)) for environment in environments])
    for t in range(num_steps):
        own = own.merged(Moments.of(seen))
        x, outputs = outputs_of(seen)
        values_TE[t] = outputs[:, -1].cpu().double().numpy()
        noise = torch.from_numpy(_noise(play, policy, rng, count)).to(outputs)
        action = policy.sample(outputs[:, :-1], noise)
        xs.append(torch.from_numpy(x).to(outputs))
        actions.append(action)
        log_probs.append(policy.log_prob(outputs[:, :-1], action))
        moves = [
            environment.step(a)
            for environment, a in zip(environments, action.cpu().double().numpy(), strict=True)
        ]
        seen = np.stack([move.observation for move in moves])
        rewards_TE[t] = [move.reward for move in moves]
        terminated_TE[t] = [move.terminated for move in moves]
        truncated_TE[t] = [move.truncated for move in moves]
        if truncated_TE[t].any():
            next_values_TE[t] = outputs_of(seen)[1][:, -1].cpu().double().numpy()
        for e, environment in enumerate(environments):
            if terminated_TE[t, e] or truncated_TE[t, e]:
                seen[e] = environment.reset(_seed(rng))
    last_E = outputs_of(seen)[1][:, -1].cpu().double().numpy()
    ended_TE = terminated_TE | truncated_TE
    next_values_TE = np.where(ended_TE, next_values_TE, [*values_TE[1:], last_E])

    mean_reward = float(rewards_TE.mean())
    if play.reward_norm:
        so_far_TE = discounted_so_far(rewards_TE, ended_TE, play.discount)
        returns = returns.merged(Moments.of(so_far_TE.reshape(-1, 1)))
        if float(returns.variance[0]) > _TINY:  # returns that are all equal have no scale
            rewards_TE = rewards_TE / np.sqrt(returns.variance)
    steps = Steps(rewards_TE, values_TE, next_values_TE, terminated_TE, truncated_TE)
    advantages_TE = gae(steps, play.discount, play.gae_lambda)
    returns_TE = advantages_TE + values_TE
    if play.normalize_advantage:
        advantages_TE = standardised(advantages_TE)
    columns = [
        torch.stack(log_probs),
        *(torch.from_numpy(part).to(xs[0]) for part in (advantages_TE, returns_TE)),
    ]
    y = torch.cat([torch.stack(actions), torch.stack(columns, -1)], -1)
    return Rollout(torch.stack(xs).flatten(0, 1), y.flatten(0, 1), own, returns, mean_reward)


def episode_return(
    play: Play,
    policy: Policy,
    network: Network,
    environment: Environment,
    seed: int,
    known: tuple[Moments, Moments | None],
) -> float:
    """Return the sum of the rewards of the most probable actions in one episode.

    ``known`` has the moments of the client's observations and those of all clients; see `roll_out`.
    """
    total, seen = 0.0, environment.reset(seed)
    for _ in range(play.eval_steps):
        outputs = network(normalised(play, *known, seen[None]))
        action = policy.best(outputs[:, :-1])[0]
        seen, reward, terminated, truncated = environment.step(action.cpu().double().numpy())
        total += reward
        if terminated or truncated:
            break
    return total


def normalised(play: Play, own: Moments, shared: Moments | None, seen: Floats) -> Floats:
    """Return what a network sees of observations."""
    if play.observation_norm == "none":
        return seen
    if play.observation_norm == "personal":
        return own.normalised(seen)
    assert shared is not None
    return shared.normalised(seen)


def _noise(play: Play, policy: Policy, rng: np.random.Generator, count: int) -> Floats:
    if play.action_noise == "grid":
        return np.array(normal_grid(count))[:, None]
    return policy.noise(rng, count)


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))
