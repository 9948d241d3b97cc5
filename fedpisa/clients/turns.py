"""A client's side of a game: whose turn a round is, and any local update, once for each player.

Shapes: ``P`` parameters of the whole module, ``G`` those of one player.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, final

from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalResult, LocalUpdate, MiniBatches
from fedpisa.clients.batches import BatchIndices, BatchSampler, BatchSize, CarryState, Ints
from fedpisa.clients.sgd import SGDSteps
from fedpisa.clients.step_sizes import UNSCHEDULED, StepSizeSchedule
from fedpisa.tasks.base import Task
from fedpisa.tasks.players import Player


class Turn(NamedTuple):
    """Whose turn a round is, and the number of the round among the player's own: 1, 2, ..."""

    player: Player
    own_round: int


@final
@dataclass(frozen=True)
class Game:
    """The players and the order of their turns.

    Parameters
    ----------
    players
        The players, in the order of the flat vector.
    turns
        The names of the players whose turns rounds 1, 2, ... are, repeated.
    project
        Function of a player's name and its parameters ``(G,)`` that returns the nearest parameters it may have.
    schedules
        Factors of each player's step sizes by its own rounds.
    same_noise
        Whether the last turn of a cycle has the random keys of the turn before it.

    Examples
    --------
    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> a, b = (Player(name, begin, ParamLayout.of([(name, torch.zeros(1))])) for begin, name in enumerate("ab"))
    >>> game = Game((a, b), ("a", "a", "b"))
    >>> [(turn.player.name, turn.own_round) for turn in map(game.turn, range(1, 7))]
    [('a', 1), ('a', 2), ('b', 1), ('a', 3), ('a', 4), ('b', 2)]
    >>> game.own_rounds("a", 8), game.own_rounds("b", 8)
    (6, 2)
    """

    players: tuple[Player, ...]
    turns: tuple[str, ...]
    project: Callable[[str, Tensor], Tensor] = lambda player, params_G: params_G
    schedules: Mapping[str, StepSizeSchedule] = field(default_factory=dict)
    same_noise: bool = False

    def __post_init__(self) -> None:
        names = [player.name for player in self.players]
        for name in self.turns:
            if name not in names:
                raise ValueError(f"a turn is that of {name!r}: give turns of {' and '.join(names)}")
        if not self.turns:
            raise ValueError("no player has a turn: give at least one")

    @classmethod
    def of(cls, task: Task, schedules: Mapping[str, StepSizeSchedule]) -> Game:
        """Return the game of a task."""
        return cls(task.players, task.turns, task.project, schedules, task.same_noise)

    def turn(self, server_round: int) -> Turn:
        """Return the turn of a round 1, 2, ..."""
        cycle, place = divmod(server_round - 1, len(self.turns))
        name = self.turns[place]
        own_round = cycle * self.turns.count(name) + self.turns[: place + 1].count(name)
        return Turn(next(player for player in self.players if player.name == name), own_round)

    def own_rounds(self, name: str, num_rounds: int) -> int:
        """Return how many of the first rounds are turns of a player."""
        cycles, more = divmod(num_rounds, len(self.turns))
        return cycles * self.turns.count(name) + self.turns[:more].count(name)

    def key_round(self, server_round: int) -> int:
        """Return the round whose random keys a round has."""
        is_last = server_round % len(self.turns) == 0
        return server_round - 1 if self.same_noise and is_last and len(self.turns) > 1 else server_round

    def schedule(self, name: str) -> StepSizeSchedule:
        """Return the schedule of a player."""
        return self.schedules.get(name, UNSCHEDULED)


def own_arrays(arrays: Arrays, name: str) -> Arrays:
    """Return what belongs to one player of arrays that are called ``player/name``, under the plain names.

    Examples
    --------
    >>> import torch
    >>> own_arrays({"critic/dual": torch.zeros(1), "generator/dual": torch.ones(1)}, "critic")
    {'dual': tensor([0.])}
    """
    prefix = f"{name}/"
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def named_for(name: str, arrays: Arrays) -> Arrays:
    """Return a player's arrays as ``player/name``."""
    return {f"{name}/{key}": value for key, value in arrays.items()}


@final
@dataclass(frozen=True)
class TurnUpdate(LocalUpdate):
    """Any local update, once for each player: a round is the turn of one.

    Each player has a state of its own, ``player/name``. A client receives the whole model, because each loss depends on
    all networks, and sends what the update uploads for the player alone. The update counts the player's own rounds.

    An update of SGD steps is projected after each step; otherwise the server alone does so.

    Parameters
    ----------
    update
        The update, with its hyper-parameters before any schedule.
    game
        The players and their turns.
    server_round
        The round, 1, 2, ...
    """

    update: LocalUpdate
    game: Game
    server_round: int = 1
    chosen: LocalUpdate | None = None

    @property
    def incremental(self) -> bool:  # type: ignore[override]  # of the update, not of the class
        """Whether uploads are increments; see `LocalUpdate`."""
        return self.update.incremental

    @cached_property
    def turn(self) -> Turn:
        """Whose turn the round is."""
        return self.game.turn(self.server_round)

    @cached_property
    def own(self) -> LocalUpdate:
        """The player's update in the round."""
        player, own_round = self.turn
        scaled = self.game.schedule(player.name).scaled(self.update, own_round)
        return self.chosen or scaled.at_round(own_round)

    def batch_sampler(self) -> BatchSampler:
        """Return the update's rule, for the player's own rounds."""
        return OwnRounds(self.own.batch_sampler(), self.turn.own_round)

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the update cannot train the module on samples such as ``x``."""
        self.update.check(task, x)

    def at_round(self, server_round: int) -> TurnUpdate:
        """Return the update of a round."""
        return replace(self, server_round=server_round, chosen=None)

    def for_broadcast(self, down: Arrays) -> TurnUpdate:
        """Return the update with the hyper-parameters that the broadcast brings."""
        return replace(self, chosen=self.own.for_broadcast(self._down(down)))

    def key_round(self, server_round: int) -> int:
        """Return the round whose keys the local steps have; see `Game`."""
        return self.game.key_round(server_round)

    def init(self, params_P: Tensor) -> Arrays:
        """Return the initial states of all players."""
        players = self.game.players
        states = (named_for(one.name, self.update.init(one.of(params_P))) for one in players)
        return {name: value for state in states for name, value in state.items()}

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin as the player's update does."""
        return self.own.start(self._down(down), self._state(state))

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take the player's step."""
        player = self.turn.player
        own_gradient = gradient.of(player, down["params"])
        own_down, own_state = self._down(down), self._state(state)
        work = self.own.step(own_gradient, own_down, own_state, work, batch)
        if not isinstance(self.own, SGDSteps):
            return work
        v_G = self.own.centre(own_down, own_state) + work["drift"]
        # Inside the set the difference is zero, and the drift keeps its digits.
        return {**work, "drift": work["drift"] + (self.game.project(player.name, v_G) - v_G)}

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Return the player's upload, and the states of all players."""
        result = self.own.finish(self._down(down), self._state(state), work)
        return result._replace(state={**state, **named_for(self.turn.player.name, result.state)})

    def _down(self, down: Arrays) -> Arrays:
        return {**down, "params": self.turn.player.of(down["params"])}

    def _state(self, state: Arrays) -> Arrays:
        return own_arrays(state, self.turn.player.name)


@final
@dataclass(frozen=True)
class OwnRounds(BatchSampler):
    """A rule that draws the samples of a player's own round, so that no mini-batch is left to the other players.

    Parameters
    ----------
    sampler
        The rule.
    own_round
        The number of the round among the player's own.
    """

    sampler: BatchSampler
    own_round: int

    @property
    def batch_size(self) -> BatchSize:
        """Largest number of samples of a mini-batch."""
        return self.sampler.batch_size

    def draw(self, sizes_S: Ints, ids_S: Ints, server_round: int, seed: int) -> BatchIndices:
        """Return the samples of the player's round; see `BatchSampler.draw`."""
        return self.sampler.draw(sizes_S, ids_S, self.own_round, seed)

    def in_order(self, carry_state: CarryState) -> BatchSampler:
        """Return the rule with the samples in order."""
        return replace(self, sampler=self.sampler.in_order(carry_state))
