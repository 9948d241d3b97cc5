"""Small games for tests, and the toys on which tests of any task run: one of one player, and one of two."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from fedpisa.models.gan import Adversaries
from fedpisa.tasks.base import Pass, Samples, Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.gan import Adversarial, Gan
from fedpisa.tasks.losses import Loss
from fedpisa.tasks.measures import Measure
from fedpisa.tasks.players import Player, players_of
from fedpisa.tasks.supervised import Supervised, supervised
from tests.algorithms import Case, Federation, fill, make, split

SIZES = (7, 3, 12, 5)
UNPLAYABLE = ("scaffnew", "moon", "local")
"""Algorithms that cannot be played in turns."""


def game(**keys: Any) -> Callable[[nn.Module], Task]:
    """Return the game of some rules, of a module."""
    return lambda module: Gan(module, Adversarial(**keys))


def small(seed: int = 0) -> nn.Module:
    """Return smooth networks on samples ``(1, 2, 2)``; the generator has BatchNorm."""
    critic = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
    normed = nn.BatchNorm1d(6, track_running_stats=False)
    generator = nn.Sequential(
        nn.Linear(3, 6, bias=False), normed, nn.Tanh(), nn.Linear(6, 4), nn.Unflatten(1, (1, 2, 2))
    )
    return fill(Adversaries(critic, generator, 3), seed)


def tracked(seed: int = 0) -> nn.Module:
    """Return networks with BatchNorms that keep running statistics."""
    critic = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)
    )
    generator = nn.Sequential(
        nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 4), nn.Unflatten(1, (1, 2, 2))
    )
    return fill(Adversaries(critic, generator, 3), seed)


def images(sizes: tuple[int, ...] = SIZES) -> dict[str, Any]:
    """Return samples ``(1, 2, 2)`` of clients with different means."""
    rng = np.random.default_rng(4)
    x = [rng.normal(rng.normal(size=(1, 2, 2)), 1.0, (size, 1, 2, 2)) for size in sizes]
    return {"x": np.concatenate(x), "y": np.zeros(sum(sizes), np.int64), "partition": split(sizes)}


def line(a: float) -> nn.Module:
    """Return the critic ``D(x) = a x`` and a generator of zeros."""
    module = Adversaries(nn.Linear(1, 1, bias=False), nn.Linear(1, 1), 1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.critic.weight.fill_(a)
    return module


def points(means: tuple[float, ...] = (3.0, -1.0, 2.0), sizes: tuple[int, ...] = (4, 7, 5)) -> dict[str, Any]:
    """Return numbers of clients with different means."""
    rng = np.random.default_rng(2)
    x = [rng.normal(mean, 1.0, (size, 1)) for mean, size in zip(means, sizes, strict=True)]
    return {"x": np.concatenate(x), "y": np.zeros(sum(sizes), np.int64), "partition": split(sizes)}


@final
@dataclass(frozen=True, eq=False)
class Toy:
    """A small problem on which a test runs.

    Parameters
    ----------
    name
        Its name in the test's.
    given
        Arguments of `tests.algorithms.make`.
    keys
        Keys of a run's configuration: the task and the model.
    turns
        The players whose turns rounds 1, 2, ... are, repeated; none if the model is trained as one.
    """

    name: str
    given: Mapping[str, Any]
    keys: Mapping[str, object]
    turns: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name

    def make(self, algorithm: Any, engine: str, **more: Any) -> Federation:
        """Return a federation of six clients."""
        return make(algorithm, engine, **{**self.given, **more})

    def of(self, name: str, server_round: int = 1) -> str:
        """Return the name of an array or metric of those that move in a round."""
        return f"{self.turns[(server_round - 1) % len(self.turns)]}/{name}" if self.turns else name

    def plays(self, name: str) -> bool:
        """Whether an algorithm trains it."""
        return not self.turns or name not in UNPLAYABLE


ONE = Toy("one-player", {}, {"model": "logistic"})
TWO = Toy(
    "two-players",
    {"module": small, "task_of": game(), "num_classes": None, **images((7, 3, 50, 2, 5, 12))},
    {"task": "gan", "objective": "non-saturating", "model": "mlp-gan", "widths": [4], "latent": 2},
    ("critic", "generator"),
)
TOYS = (ONE, TWO)


def on_toys(cases: Iterable[Any], two: Iterable[str] | None = None) -> list[tuple[Any, ...]]:
    """Return the toys with each case, which is a name, or begins with one, or is a `Case`.

    ``two`` are the names that the toy of two players takes, by default all that can be played.
    """
    found = []
    for toy in TOYS:
        for case in cases:
            parts = case if isinstance(case, tuple) else (case,)
            name = parts[0].name if isinstance(parts[0], Case) else parts[0]
            if toy is ONE or (toy.plays(name) and (two is None or name in two)):
                found.append((toy, *parts))
    return found


class Net(nn.Module):
    """A network in a submodule, which no engine takes for a sequence of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.net(x)


class ToyTask(Task, ABC):
    """A task of a test."""

    def with_module(self, module: nn.Module, *, autocast: bool = False) -> Self:
        """Return the task of another module."""
        return replace(self, module=module, autocast=autocast)

    def closed_form(self, num_outputs: int) -> Loss | None:
        """Return ``None``."""
        return None


class Pull(nn.Module):
    """Two vectors ``a`` and ``b`` of 4 numbers; a sample is a curvature ``h`` and the vectors ``p`` and ``q``."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Linear(4, 1, bias=False) for _ in range(2))
        for layer in (self.left, self.right):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``h ||a - p||^2 / 2``, ``h ||b - q||^2 / 2`` and ``a'b`` of each sample."""
        a, b = self.left.weight, self.right.weight
        own = [0.5 * x[:, 0] * (w - wanted).square().sum(1) for w, wanted in ((a, x[:, 1:5]), (b, x[:, 5:]))]
        return torch.stack([*own, (a * b).sum().expand(len(x))], 1)


@final
@dataclass(frozen=True)
class Tug(ToyTask):
    """A game with one equilibrium: ``left`` adds ``c a'b`` to its term of `Pull`, and ``right`` subtracts it."""

    c: float = field(default=0.5, kw_only=True)

    @property
    def players(self) -> tuple[Player, ...]:
        """Both vectors."""
        return players_of(self.module, self.turns)

    @property
    def turns(self) -> tuple[str, ...]:
        """One after the other."""
        return ("left", "right")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """None."""
        return ()

    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        samples: Samples,
        extra: FeatureLoss | None = None,
        memory: Mapping[str, Tensor] = MappingProxyType({}),
        player: str | None = None,
    ) -> Pass:
        """Return a player's losses, or the sum of both."""
        left_B, right_B, coupling_B = self.outputs(params, buffers_Q, samples.x, samples.real_B)[0].unbind(1)
        of = {"left": left_B + self.c * coupling_B, "right": right_B - self.c * coupling_B}
        return Pass(of[player] if player else left_B + right_B, buffers_Q, memory)

    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the sums of both losses."""
        return {"loss": self.losses(None, x.new_zeros(0), Samples(x, y)).losses_B}

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return the means."""
        return dict(means)

    def evaluate(self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return the mean of both losses."""
        with self.holding(params_P, buffers_Q):
            return {"loss": float(self.sample_scores(x, y)["loss"].mean())}


def tug(num_clients: int = 6) -> tuple[dict[str, Any], np.ndarray]:
    """Return the arguments of `make` for `Tug` with clients of different samples, and its equilibrium.

    With means over all samples, ``h a + c b = hp`` and ``h b - c a = hq``.
    """
    rng, sizes = np.random.default_rng(3), np.arange(3, 3 + num_clients)
    centres = np.repeat(rng.normal(size=(num_clients, 8)), sizes, 0)
    h = rng.uniform(0.5, 1.5, (sizes.sum(), 1))
    x = np.hstack([h, centres + rng.normal(size=centres.shape)])
    c, (p, q) = Tug(Pull()).c, (h * x[:, 1:]).mean(0).reshape(2, 4)
    pair = np.array([[h.mean(), c], [-c, h.mean()]])
    given = {"module": Pull, "task_of": Tug, "num_classes": None}
    data = {"x": x, "y": np.zeros(len(x), np.int64), "partition": split(sizes.tolist())}
    return {**given, **data}, np.linalg.solve(pair, np.stack([p, q])).ravel()


@final
@dataclass(frozen=True)
class Alone(ToyTask):
    """A classification as a game of one player."""

    within: bool = field(default=False, kw_only=True)

    @cached_property
    def plain(self) -> Supervised:
        """The same task without players."""
        return supervised(self.module, 3)

    @property
    def players(self) -> tuple[Player, ...]:
        """The whole model."""
        return players_of(self.module, ["net"])

    @property
    def turns(self) -> tuple[str, ...]:
        """The only player's."""
        return ("net",)

    @property
    def turns_within(self) -> bool:
        """Whether the turns are within a round, which makes no difference."""
        return self.within

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those of the plain task."""
        return self.plain.measures

    def losses(
        self,
        params: Mapping[str, Tensor] | None,
        buffers_Q: Tensor,
        samples: Samples,
        extra: FeatureLoss | None = None,
        memory: Mapping[str, Tensor] = MappingProxyType({}),
        player: str | None = None,
    ) -> Pass:
        """Return those of the plain task."""
        return self.plain.losses(params, buffers_Q, samples, extra, memory)

    def sample_scores(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return those of the plain task."""
        return self.plain.sample_scores(x, y)

    def combine(self, means: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the plain task."""
        return self.plain.combine(means)

    def evaluate(self, params_P: Tensor, buffers_Q: Tensor, x: Tensor, y: Tensor) -> dict[str, float]:
        """Return those of the plain task."""
        return self.plain.evaluate(params_P, buffers_Q, x, y)
