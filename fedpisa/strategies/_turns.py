"""The server's side of a game: any algorithm, once for each player. No configuration names it; the task does.

Shapes: ``P`` parameters of the whole module, ``G`` those of one player, ``S`` clients of the cohort.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final, final

from torch import Tensor

from fedpisa.clients.base import Arrays, LocalUpdate
from fedpisa.clients.client import OF_EVERY_CLIENT
from fedpisa.clients.gradient import MeanGradient
from fedpisa.clients.moon import MoonUpdate
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.scaffnew import ScaffnewUpdate
from fedpisa.clients.sgd import SGDSteps
from fedpisa.clients.turns import Game, Turn, TurnUpdate, joined, own_arrays
from fedpisa.strategies.base import Algorithm, ClientStates, Cohort, Objective, Reference
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.players import Player

_REFUSED: Final[Mapping[type[LocalUpdate], str]] = {
    ScaffnewUpdate: "its coin says how many steps a round has, whose turn it may be",
    MoonUpdate: "it compares the features of one network's outputs",
}
AVERAGED: Final = "averaged/"
"""Before a player's name: the name of the running mean of its parameters in the server's state."""


@final
@dataclass(frozen=True)
class Turns(Algorithm):
    """Any algorithm, once for each player. A player's state stays as it is in rounds in which it does not move.

    Server state: ``params`` of the whole module, and for each player the algorithm's state without its parameters as
    ``player/name``. The algorithm counts the player's own rounds. After its step the player's parameters are projected:
    for a set that is a box, and an algorithm whose step minimises a separable quadratic, as PISA's (2.9), this is the
    exact minimiser in the box.

    Parameters
    ----------
    algorithm
        The algorithm, with its hyper-parameters before any schedule.
    game
        The players and their turns.
    averages
        By player, the decay ``d`` of a running mean ``m <- d m + (1 - d) w`` of its parameters after each of its turns.
    server_round
        The round 1, 2, ..., or 0 for the start.

    Raises
    ------
    ValueError
        If the algorithm cannot be played in turns.
    """

    algorithm: Algorithm
    game: Game
    averages: Mapping[str, float] = field(default_factory=dict)
    server_round: int = 0
    local_update: TurnUpdate = field(init=False)

    def __post_init__(self) -> None:
        update = self.algorithm.local_update
        for refused, reason in _REFUSED.items():
            if isinstance(update, refused):
                name = type(self.algorithm).__name__.lower()
                raise ValueError(f"{name} cannot be played in turns: {reason}; take another algorithm")
        if self.algorithm.reference == "local":
            raise ValueError(
                "local cannot be played in turns: each client has models of its own, and the server has none to "
                "evaluate; take another algorithm"
            )
        if self.game.within and not isinstance(update, SGDSteps | PisaUpdate | MeanGradient):
            raise ValueError(
                f"turns-within = true: {type(self.algorithm).__name__.lower()} does not say where its local steps have "
                "brought it; set turns-within = false, or take an algorithm of SGD steps, or PISA or SISA"
            )
        if (
            self.game.within
            and isinstance(update, MeanGradient)
            and len({*self.game.turns}) < len(self.game.turns)
        ):
            raise ValueError(
                "turns-within = true: no client of this algorithm moves, so all steps of the critic but the last "
                "would be lost; set critic-steps = 1, or turns-within = false"
            )
        object.__setattr__(self, "local_update", TurnUpdate(update, self.game))

    @property
    def reference(self) -> Reference:  # type: ignore[override]  # of the algorithm, not of the class
        """Which reference the algorithm is; see `Algorithm`."""
        return self.algorithm.reference

    @property
    def regularization(self) -> float:
        """Coefficient of the algorithm's L2 term."""
        return self.algorithm.regularization

    def at_round(self, server_round: int) -> Turns:
        """Return the algorithm of a round."""
        return replace(self, server_round=server_round)

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start each player as the algorithm does, inside its set."""
        server: Arrays = {"params": params_P}
        for player in self.game.players:
            own = self._of(player, 0).init(player.of(params_P).clone(), player.layout)
            server = self._with(server, player, own)
            if player.name in self.averages:
                server = {**server, AVERAGED + player.name: player.of(server["params"])}
        return server

    def broadcast(self, server: Arrays) -> Arrays:
        """Return the whole model, and what else the algorithm sends to the moving players."""
        found: Arrays = {"params": server["params"]}
        for player, own_round in self.game.moving(self.server_round):
            own = dict(self._of(player, own_round).broadcast(_own(server, player)))
            del own["params"]
            found = {**found, **joined({player.name: own})}
        return found

    def weights(self, cohort: Cohort) -> Tensor:
        """Return the algorithm's weights of the cohort ``(S,)``."""
        return self.algorithm.weights(cohort)

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Take the moving players' steps, and project their parameters."""
        for turn in self.game.moving(cohort.server_round):
            player, own_round = turn
            uploads = own_arrays(uploads_S, player.name)
            own = self._of(player, own_round).step(_own(server, player), uploads, _own_cohort(cohort, turn))
            server = self._with(server, player, own)
            if (decay := self.averages.get(player.name)) is not None:
                name = AVERAGED + player.name
                mean_G = decay * server[name] + (1 - decay) * player.of(server["params"])
                server = {**server, name: mean_G}
        return server

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without what each player's algorithm keeps of some clients."""
        for player in self.game.players:
            own = _own(server, player)
            after = self.algorithm.forget(own, ids_S)
            if after is not own:
                server = self._with(server, player, after)
        return server

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the moving players' diagnostics as ``player/name``, and the metrics of every client without it.

        If players move within a round, ``train-loss`` is that of the last one, and no player's.
        """
        plain = {name: metrics[name] for name in OF_EVERY_CLIENT}
        columns = dict(plain)
        for turn in self.game.moving(cohort.server_round):
            player, own_round = turn
            own = {**plain, **_metrics(metrics, player)}
            found = self._of(player, own_round).diagnostics(
                _own(before, player), _own(after, player), own, _own_cohort(cohort, turn)
            )
            left_out = OF_EVERY_CLIENT if self.game.within else {"local-steps"}
            columns |= {
                f"{player.name}/{name}": value for name, value in found.items() if name not in left_out
            }
        return columns

    def stationarity(self, server: Arrays, states: ClientStates, weights_N: Tensor) -> dict[str, float]:
        """Return each player's as ``player/name``."""
        return {
            f"{player.name}/{name}": value
            for player in self.game.players
            for name, value in self.algorithm.stationarity(
                _own(server, player), PlayerStates(states, player.name), weights_N
            ).items()
        }

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Refuse: a game has no objective that all players minimise."""
        raise ValueError(
            "exact-diagnostics = true: the players minimise different losses, so there is no common objective: set "
            "exact-diagnostics = false"
        )

    def averaged(self, server: Arrays) -> Tensor:
        """Return the whole model ``(P,)`` with the running means in place of the parameters that have one."""
        params_P = server["params"]
        for player in self.game.players:
            if player.name in self.averages:
                params_P = player.put(params_P, server[AVERAGED + player.name])
        return params_P

    def _of(self, player: Player, own_round: int) -> Algorithm:
        scheduled = self.game.schedule(player.name).scaled(self.algorithm, own_round)
        return scheduled.at_round(own_round)

    def _with(self, server: Arrays, player: Player, own: Arrays) -> Arrays:
        """Return the server's state with another state of one player."""
        others = {name: value for name, value in server.items() if not name.startswith(f"{player.name}/")}
        params_G = self.game.project(player.name, own["params"])
        kept = {name: value for name, value in own.items() if name != "params"}
        return {
            **others,
            **joined({player.name: kept}),
            "params": player.put(server["params"], params_G),
        }


def _own_cohort(cohort: Cohort, turn: Turn) -> Cohort:
    """Return the cohort of a player's own round."""
    return replace(cohort, server_round=turn.own_round, layout=turn.player.layout)


def _metrics(metrics: Mapping[str, float], player: Player) -> dict[str, float]:
    """Return a player's own metrics under their plain names."""
    prefix = f"{player.name}/"
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


def _own(server: Arrays, player: Player) -> Arrays:
    """Return one player's state on the server."""
    return {**own_arrays(server, player.name), "params": player.of(server["params"])}


@final
@dataclass(frozen=True)
class PlayerStates:
    """Read access to the clients' states of one player."""

    states: ClientStates
    name: str

    def weighted_sum(self, name: str, weights_N: Tensor) -> Tensor:
        """Return ``sum_i weights_i state_i[name]`` of the player's states."""
        return self.states.weighted_sum(f"{self.name}/{name}", weights_N)

    def state(self, client_id: int) -> Arrays | None:
        """Return the player's state of one client, ``None`` if the client never took part."""
        state = self.states.state(client_id)
        return None if state is None else own_arrays(state, self.name)
