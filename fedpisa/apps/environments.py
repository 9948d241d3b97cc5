"""A node's own environments, which its own function makes."""

from __future__ import annotations

from dataclasses import dataclass
from logging import getLogger
from typing import Final, final

import numpy as np

from fedpisa.components import one_line
from fedpisa.control.environments import Environment, Environments, Floats, Moved
from fedpisa.datasets.base import Dataset
from fedpisa.families.builder import build
from fedpisa.families.lookup import find

PREFIX: Final = "env:"
"""What precedes ``module:callable`` in the key ``data`` of a node's config."""


def playing(environments: Environments | None) -> tuple[int, ...]:
    """Return the number of environments side by side and of steps in each, for the record of a run."""
    return () if environments is None else (environments.num_envs, environments.rollout_steps)


def actions(environments: Environments | None) -> str:
    """Return the kind of actions, for the record of a node."""
    if environments is None:
        return ""
    return "discrete" if environments.discrete else "continuous"


def own_environments(name: str, steps: tuple[int, ...], num_clients: int, seed: int) -> Dataset:
    """Return the data set of a node whose policy acts in the node's own environments.

    Parameters
    ----------
    name
        ``module:callable``. The callable returns `Environments` of one client, and may take ``num_clients`` and
        ``seed``.
    steps
        What `playing` gives for the run. It replaces the callable's numbers.
    num_clients
        The run's number of clients.
    seed
        The run's seed.

    Raises
    ------
    ValueError
        If the callable may not be imported, or fails. The details are in the node's log only.
    """
    try:
        made = build(find("dataset", name), num_clients=1, seed=seed)
        if not isinstance(made, Environments):
            raise ValueError(f"{name} gave a {type(made).__name__}: return of_gymnasium(...) or Environments")
    except Exception as error:
        raise _told(error) from None

    def make(client_id: int) -> Environment:
        try:
            return _Private(made.make(0))
        except Exception as error:
            raise _told(error) from None

    shape = made.observation_shape
    environments = Environments(make, num_clients, shape, made.num_actions, made.discrete, *steps)
    samples = np.zeros((environments.num_samples, *shape), np.float32), np.zeros(environments.num_samples)
    few = tuple(part[:1] for part in samples)
    return Dataset.of("own", samples, (few[0], few[1]), num_classes=None, environments=environments)


@final
@dataclass(frozen=True)
class _Private(Environment):
    """An environment whose errors are told to the node's log only."""

    environment: Environment

    def reset(self, seed: int) -> Floats:
        """Begin an episode."""
        try:
            return self.environment.reset(seed)
        except Exception as error:
            raise _told(error) from None

    def step(self, action: Floats) -> Moved:
        """Take an action."""
        try:
            return self.environment.step(action)
        except Exception as error:
            raise _told(error) from None


def _told(error: Exception) -> ValueError:
    """Write an error to the node's log, and return the one that the server may see."""
    getLogger("flwr").error("the node's own environments: %s", one_line(error))
    return ValueError("the node's own environments cannot be used: its log says why")
