"""Environments with the interface of Gymnasium, and MuJoCo's dynamics that differ between clients.

The library is needed only where an environment is made: extra ``control``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import numpy as np

from fedpisa.components import one_line
from fedpisa.control.environments import Environment, Environments, Floats, Moved
from fedpisa.rng import generator

if TYPE_CHECKING:
    import gymnasium


def of_gymnasium(
    make: Callable[[int], gymnasium.Env[Any, Any]],
    num_clients: int,
    num_envs: int = 4,
    rollout_steps: int = 128,
) -> Environments:
    """Return clients' environments from a function that makes one of Gymnasium's.

    Observations that are not arrays of numbers are flattened by Gymnasium, so that one of ``n`` cases is a vector of
    ``n`` numbers. A policy's continuous actions from -1 to 1 are scaled to the bounds of the action space, if it has
    any, and cut off there. Each client's environments have the same spaces.

    Parameters
    ----------
    make
        Function that returns a new environment of a client, given its number. After ``reset`` with a seed, nothing in
        it may depend on what was before.
    num_clients
        ``N``.
    num_envs, rollout_steps
        See `fedpisa.control.environments.Environments`.

    Raises
    ------
    ValueError
        If actions are neither discrete nor an array of numbers, or Gymnasium is not installed.
    """
    spaces = _gymnasium().spaces
    first = make(0)
    action, observation = first.action_space, first.observation_space
    if isinstance(action, spaces.Discrete):
        num_actions = int(action.n)
    elif isinstance(action, spaces.Box):
        num_actions = int(np.prod(action.shape))
    else:
        raise ValueError(
            f"the actions are {type(action).__name__}: take an environment with Discrete or Box actions"
        )
    is_array = isinstance(observation, spaces.Box) and bool(observation.shape)
    shape: tuple[int, ...] = (
        tuple(observation.shape or ()) if is_array else (int(spaces.flatdim(observation)),)
    )
    return Environments(
        make=lambda client_id: _Adapted(make(client_id)),
        num_clients=num_clients,
        observation_shape=shape,
        num_actions=num_actions,
        discrete=isinstance(action, spaces.Discrete),
        num_envs=num_envs,
        rollout_steps=rollout_steps,
    )


@final
class _Adapted(Environment):
    """One of Gymnasium's environments; see `of_gymnasium`."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self.env = env

    def reset(self, seed: int) -> Floats:
        """Begin an episode."""
        return self._numbers(self.env.reset(seed=seed)[0])

    def step(self, action: Floats) -> Moved:
        """Take an action."""
        observation, reward, terminated, truncated, _ = self.env.step(self._own(action))
        return Moved(self._numbers(observation), float(reward), bool(terminated), bool(truncated))

    def _numbers(self, observation: Any) -> Floats:
        space, spaces = self.env.observation_space, _gymnasium().spaces
        if not isinstance(space, spaces.Box) or space.shape == ():
            observation = spaces.flatten(space, observation)
        return np.array(observation, np.float64)

    def _own(self, action: Floats) -> Any:
        """Return a policy's action as the environment takes it."""
        space: Any = self.env.action_space
        if isinstance(space, _gymnasium().spaces.Discrete):
            return int(space.start) + int(action[0])
        own = action.reshape(space.shape)
        if space.is_bounded():
            own = space.low + (np.clip(own, -1, 1) + 1) / 2 * (space.high - space.low)
        return own.astype(space.dtype)


@final
@dataclass(frozen=True)
class Dynamics:
    """How much the clients' dynamics differ: each factor is uniform in ``[1 - spread, 1 + spread]``.

    Parameters
    ----------
    gravity, friction, mass
        The spreads.
    """

    gravity: float = 0.0
    friction: float = 0.0
    mass: float = 0.0

    def factors(self, seed: int, client_id: int) -> tuple[float, float, float]:
        """Return a client's factors of gravity, friction and mass.

        Examples
        --------
        >>> gravity, friction, mass = Dynamics(gravity=0.3).factors(seed=0, client_id=1)
        >>> 0.7 <= gravity <= 1.3, friction, mass
        (True, 1.0, 1.0)
        """
        draws = generator(seed, "dynamics", client_id).uniform(-1, 1, 3)
        gravity, friction, mass = (1 + draws * (self.gravity, self.friction, self.mass)).tolist()
        return gravity, friction, mass

    def apply(self, env: gymnasium.Env[Any, Any], seed: int, client_id: int) -> None:
        """Change an environment's simulator; the inertia is scaled with the mass, as by another density.

        Raises
        ------
        ValueError
            If the environment is not one of MuJoCo's.
        """
        if not any((self.gravity, self.friction, self.mass)):
            return
        model = getattr(env.unwrapped, "model", None)
        if not all(hasattr(model, name) for name in ("opt", "geom_friction", "body_mass", "body_inertia")):
            raise ValueError(
                "gravity-spread, friction-spread and mass-spread change the model of MuJoCo, which the environment "
                "does not have: set them to 0, or take one such as HalfCheetah-v5"
            )
        assert model is not None
        gravity, friction, mass = self.factors(seed, client_id)
        for values, factor in (
            (model.opt.gravity, gravity),
            (model.geom_friction, friction),
            (model.body_mass, mass),
            (model.body_inertia, mass),
        ):
            values *= factor


def named(
    env: str,
    *,
    seed: int,
    num_clients: int,
    num_envs: int,
    rollout_steps: int,
    dynamics: Dynamics,
) -> Environments:
    """Return clients' environments by Gymnasium's name; see `of_gymnasium`.

    Raises
    ------
    ValueError
        If Gymnasium does not have the environment or cannot make it.
    """
    library = _gymnasium()
    if ":" in env:
        raise ValueError(
            f"env = {env!r} names a module: write a function that returns of_gymnasium(...), and name it as "
            "dataset = 'module:function'"
        )

    def make(client_id: int) -> gymnasium.Env[Any, Any]:
        try:
            made: gymnasium.Env[Any, Any] = library.make(env)
        except (library.error.Error, ImportError) as error:
            raise ValueError(f"env = {env!r}: Gymnasium cannot make it ({one_line(error)})") from error
        dynamics.apply(made, seed, client_id)
        return made

    return of_gymnasium(make, num_clients, num_envs, rollout_steps)


def _gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError as error:
        raise ValueError(
            "environments of Gymnasium need the extra control: run pip install 'fedpisa[control]'"
        ) from error
    return gymnasium
