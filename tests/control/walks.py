"""Environments for tests, as a user writes them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np

from fedpisa.control.environments import Environment, Environments, Floats, Moved

LENGTH = 7


class Walk(Environment):
    """A point that moves by the action and some noise; it ends far out, and is cut off after `LENGTH` steps."""

    def __init__(self, client_id: int, discrete: bool) -> None:
        self.drift, self.discrete = 0.1 * client_id, discrete

    def reset(self, seed: int) -> Floats:
        self.rng, self.steps = np.random.default_rng(seed), 0
        self.place = self.rng.normal(size=2)
        return self.place.copy()

    def step(self, action: Floats) -> Moved:
        move = float(action[0]) - 1 if self.discrete else float(np.clip(action[0], -1, 1))
        self.steps += 1
        self.place = self.place + np.array([0.3 * move + self.drift, 0.1 * self.rng.normal()])
        reward = -float(self.place @ self.place)
        return Moved(self.place.copy(), reward, bool(self.place @ self.place > 9), self.steps >= LENGTH)


def continuous(*, num_clients: int) -> Environments:
    return Environments(lambda client: Walk(client, False), num_clients, (2,), 1, False, 2, 10)


def discrete(*, num_clients: int) -> Environments:
    return Environments(lambda client: Walk(client, True), num_clients, (2,), 3, True, 2, 10)


class Far(Walk):
    """A walk that is seen from far away."""

    def reset(self, seed: int) -> Floats:
        """Begin."""
        return super().reset(seed) + 1e4

    def step(self, action: Floats) -> Moved:
        """Take a step."""
        moved = super().step(action)
        return moved._replace(observation=moved.observation + 1e4)


def far(*, num_clients: int) -> Environments:
    return Environments(lambda client: Far(client, False), num_clients, (2,), 1, False, 2, 10)


class Deadly(Walk):
    """A walk that kills its process in a step, if the file ``deadly`` says after how many; the file is then gone."""

    def step(self, action: Floats) -> Moved:
        """Take a step, perhaps the last one."""
        fuse = Path("deadly")
        if fuse.exists():
            left = int(fuse.read_text()) - 1
            fuse.write_text(str(left))
            if not left:
                fuse.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


def deadly(*, num_clients: int) -> Environments:
    return Environments(lambda client: Deadly(client, False), num_clients, (2,), 1, False, 2, 10)
