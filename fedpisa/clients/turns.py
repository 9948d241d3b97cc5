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
from fedpisa.rng import mix
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
    within
        Whether all players move in each round: each local step is then a cycle of turns.

    Examples
    --------
    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> a, b = (Player(name, begin, ParamLayout.of([(name, torch.zeros(1))])) for begin, name in enumerate("ab"))
    >>> game = Game((a, b), ("a", "a", "b"))
    >>> [(turn.player.name, turn.own_round) for number in range(1, 7) for turn in game.moving(number)]
    [('a', 1), ('a', 2), ('b', 1), ('a', 3), ('a', 4), ('b', 2)]
    >>> game.own_rounds("a", 8), game.own_rounds("b", 8)
    (6, 2)
    """

    players: tuple[Player, ...]
    turns: tuple[str, ...]
    project: Callable[[str, Tensor], Tensor] = lambda player, params_G: params_G
    schedules: Mapping[str, StepSizeSchedule] = field(default_factory=dict)
    same_noise: bool = False
    within: bool = False

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
        return cls(task.players, task.turns, task.project, schedules, task.same_noise, task.turns_within)

    def moving(self, server_round: int) -> tuple[Turn, ...]:
        """Return the players that move in a round 1, 2, ..., in the order of their first turns."""
        by_name = {player.name: player for player in self.players}
        if self.within:
            return tuple(Turn(by_name[name], server_round) for name in dict.fromkeys(self.turns))
        cycle, place = divmod(server_round - 1, len(self.turns))
        name = self.turns[place]
        own_round = cycle * self.turns.count(name) + self.turns[: place + 1].count(name)
        return (Turn(by_name[name], own_round),)

    def own_rounds(self, name: str, num_rounds: int) -> int:
        """Return in how many of the first rounds a player moves."""
        if self.within:
            return num_rounds
        cycles, more = divmod(num_rounds, len(self.turns))
        return cycles * self.turns.count(name) + self.turns[:more].count(name)

    def key_round(self, server_round: int) -> int:
        """Return the round whose random keys a round has."""
        if self.within:
            return server_round
        place = (server_round - 1) % len(self.turns)
        return server_round + self.key_place(place) - place

    def key_place(self, place: int) -> int:
        """Return the place among the turns, 0, 1, ..., whose random keys a turn has."""
        return place - 1 if self.same_noise and place == len(self.turns) - 1 and place else place

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


def joined(arrays: Mapping[str, Arrays]) -> Arrays:
    """Return the arrays of all players as ``player/name``.

    Examples
    --------
    >>> import torch
    >>> joined({"critic": {"dual": torch.zeros(1)}})
    {'critic/dual': tensor([0.])}
    """
    return {f"{name}/{key}": value for name, own in arrays.items() for key, value in own.items()}


@final
@dataclass(frozen=True)
class TurnUpdate(LocalUpdate):
    """Any local update, once for each player.

    Each player has a state of its own, ``player/name``. Its uploads and metrics are called so too. A client receives
    the whole model, because each loss depends on all networks, and sends the uploads of the players that move in the
    round.

    If a round is the turn of one player, that player takes all local steps. If all move within a round, a local step is
    a cycle of turns on its mini-batches, and each player's gradient is at the others' local models.

    An update of SGD steps is projected after each step; otherwise the server alone does so.

    Parameters
    ----------
    update
        The update, with its hyper-parameters before any schedule.
    game
        The players and their turns.
    server_round
        The round, 1, 2, ...
    chosen
        By player, the update with the hyper-parameters of a broadcast.
    """

    update: LocalUpdate
    game: Game
    server_round: int = 1
    chosen: Mapping[str, LocalUpdate] = field(default_factory=dict, hash=False)

    @property
    def incremental(self) -> bool:  # type: ignore[override]  # of the update, not of the class
        """Whether uploads are increments; see `LocalUpdate`."""
        return self.update.incremental

    @cached_property
    def moving(self) -> dict[str, _Moving]:
        """The players that move in the round, by name, with their updates."""
        found = {}
        for player, own_round in self.game.moving(self.server_round):
            scaled = self.game.schedule(player.name).scaled(self.update, own_round)
            update = self.chosen.get(player.name) or scaled.at_round(own_round)
            found[player.name] = _Moving(player, own_round, update)
        return found

    def batch_sampler(self) -> BatchSampler:
        """Return the update's rule, for the players' own rounds."""
        first = next(iter(self.moving.values()))
        return OwnRounds(first.update.batch_sampler(), first.own_round)

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the update cannot train the module on samples such as ``x``."""
        self.update.check(task, x)

    def at_round(self, server_round: int) -> TurnUpdate:
        """Return the update of a round."""
        return replace(self, server_round=server_round, chosen={})

    def for_broadcast(self, down: Arrays) -> TurnUpdate:
        """Return the update with the hyper-parameters that the broadcast brings."""
        chosen = {name: one.update.for_broadcast(one.down(down)) for name, one in self.moving.items()}
        return replace(self, chosen=chosen)

    def key_round(self, server_round: int) -> int:
        """Return the round whose keys the local steps have; see `Game`."""
        return self.game.key_round(server_round)

    def init(self, params_P: Tensor) -> Arrays:
        """Return the initial states of all players."""
        players = self.game.players
        return joined({one.name: self.update.init(one.of(params_P)) for one in players})

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Begin as the update of each moving player does."""
        return joined(
            {
                name: one.update.start(one.down(down), own_arrays(state, name))
                for name, one in self.moving.items()
            }
        )

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Take the moving player's step, or a cycle of all players' steps."""
        if not self.game.within:
            (one,) = self.moving.values()
            return self._stepped(one, gradient, down["params"], down, state, work, batch)
        for place, name in enumerate(self.game.turns):
            key = mix(batch.key, self.game.key_place(place))
            others_P = self._local(down, state, work)
            own = batch._replace(key=key)
            work = self._stepped(self.moving[name], gradient, others_P, down, state, work, own)
        return work

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Return the moving players' uploads and metrics, and the states of all players."""
        results = {
            name: one.update.finish(one.down(down), own_arrays(state, name), own_arrays(work, name))
            for name, one in self.moving.items()
        }
        return LocalResult(
            joined({name: result.upload for name, result in results.items()}),
            {**state, **joined({name: result.state for name, result in results.items()})},
            joined({name: result.metrics for name, result in results.items()}),
        )

    def _stepped(
        self,
        one: _Moving,
        gradient: Gradient,
        others_P: Tensor,
        down: Arrays,
        state: Arrays,
        work: Arrays,
        batch: MiniBatches,
    ) -> Arrays:
        """Return the working variables after one player's step, with the other players at ``others`` ``(P,)``."""
        name, own_down = one.player.name, one.down(down)
        own_state, own_work = own_arrays(state, name), own_arrays(work, name)
        own = one.update.step(gradient.of(one.player, others_P), own_down, own_state, own_work, batch)
        if isinstance(one.update, SGDSteps):
            v_G = one.update.centre(own_down, own_state) + own["drift"]
            # Inside the set the difference is zero, and the drift keeps its digits.
            own = {**own, "drift": own["drift"] + (self.game.project(name, v_G) - v_G)}
        others = {key: value for key, value in work.items() if not key.startswith(f"{name}/")}
        return {**others, **joined({name: own})}

    def _local(self, down: Arrays, state: Arrays, work: Arrays) -> Tensor:
        """Return the model ``(P,)`` in which all players are where their steps have brought them."""
        whole_P = down["params"]
        for name, one in self.moving.items():
            drift_G = own_arrays(work, name).get("drift")
            if drift_G is not None:
                own_down, own_state = one.down(down), own_arrays(state, name)
                centre_G = own_down["params"]
                if isinstance(one.update, SGDSteps):
                    centre_G = one.update.centre(own_down, own_state)
                whole_P = one.player.put(whole_P, centre_G + drift_G)
        return whole_P


class _Moving(NamedTuple):
    """A player that moves in a round, the round's number among its own, and its update."""

    player: Player
    own_round: int
    update: LocalUpdate

    def down(self, down: Arrays) -> Arrays:
        """Return the player's part of a broadcast."""
        return {**own_arrays(down, self.player.name), "params": self.player.of(down["params"])}


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
