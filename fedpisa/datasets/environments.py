"""Data sources of reinforcement learning: clients that have an environment and no samples."""

from __future__ import annotations

import numpy as np

from fedpisa.control.bandit import Bandit
from fedpisa.control.environments import Environments
from fedpisa.control.gymnasium_api import Dynamics, named
from fedpisa.datasets._own import without_samples
from fedpisa.datasets.base import Dataset
from fedpisa.rng import generator
from fedpisa.typing import Decay, NonNegative, PositiveInt


def bandit(
    *,
    seed: int,
    num_clients: int,
    num_envs: PositiveInt = 4,
    rollout_steps: PositiveInt = 32,
    action_spread: NonNegative = 1.0,
) -> Dataset:
    """Environments of one step, whose best action is known, for reinforcement learning.

    Client i's reward of an action ``a`` is ``-c_i (a - a_i)^2``, with ``a_i ~ N(0, action-spread^2)`` and ``c_i``
    log-uniform in [1/2, 2]. The observation is always 1. Use the partitioner ``natural``.

    ``ground_truth`` holds ``client-optima`` ``a_i`` and ``curvatures`` ``c_i``, both ``(N,)``, and the ``optimum``
    ``sum_i c_i a_i / sum_i c_i`` of the mean reward.

    Parameters
    ----------
    num_envs
        Number of environments in which a client acts side by side.
    rollout_steps
        Number of steps that a client takes in each of them before it learns from these.
    action_spread
        Standard deviation of the clients' best actions.

    Examples
    --------
    >>> data = bandit(seed=0, num_clients=3)
    >>> data.shape, data.num_outputs, data.default_task, sorted(data.ground_truth)
    ((1,), 3, 'ppo', ['client-optima', 'curvatures', 'optimum'])
    """
    rngs = [generator(seed, "bandit", client) for client in range(num_clients)]
    best_N = action_spread * np.array([rng.normal() for rng in rngs])
    curvature_N = 2.0 ** np.array([rng.uniform(-1, 1) for rng in rngs])
    environments = Environments(
        make=lambda client_id: Bandit(float(best_N[client_id]), float(curvature_N[client_id])),
        num_clients=num_clients,
        observation_shape=(1,),
        num_actions=1,
        discrete=False,
        num_envs=num_envs,
        rollout_steps=rollout_steps,
    )
    truth = {
        "client-optima": best_N,
        "curvatures": curvature_N,
        "optimum": float(curvature_N @ best_N / curvature_N.sum()),
    }
    return without_samples("bandit", environments, ground_truth=truth)


def gymnasium(
    *,
    seed: int,
    num_clients: int,
    env: str,
    num_envs: PositiveInt = 4,
    rollout_steps: PositiveInt = 128,
    gravity_spread: Decay = 0.0,
    friction_spread: Decay = 0.0,
    mass_spread: Decay = 0.0,
) -> Dataset:
    """Environments of Gymnasium, one for each client, for reinforcement learning (extra ``control``).

    With a spread above 0, MuJoCo's dynamics differ between clients. A client's factor of gravity, friction or mass is
    uniform in ``[1 - spread, 1 + spread]`` and depends on the seed and the client alone. Use the partitioner
    ``natural``. Your own environments are a function that returns ``of_gymnasium(...)``, by
    ``dataset = "module:function"``.

    Parameters
    ----------
    env
        Gymnasium's name, such as ``HalfCheetah-v5``.
    num_envs
        Number of environments in which a client acts side by side.
    rollout_steps
        Number of steps that a client takes in each of them before it learns from these.
    gravity_spread, friction_spread, mass_spread
        How much a client's gravity, friction and mass differ from the usual ones, at most.
    """
    dynamics = Dynamics(gravity_spread, friction_spread, mass_spread)
    environments = named(
        env,
        seed=seed,
        num_clients=num_clients,
        num_envs=num_envs,
        rollout_steps=rollout_steps,
        dynamics=dynamics,
    )
    return without_samples(env, environments)
