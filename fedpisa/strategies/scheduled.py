"""Any algorithm with hyper-parameters that change with the round.

A factor multiplies step sizes, and divides what a step size is the inverse of: PISA's is
``1 / (sigma + rho Q)``. The algorithm of a round is the algorithm with other values, so what it does there
is what it would do with those; what it keeps from round to round must not depend on the value of another round.
Round 0, the start, has the values of round 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final, Never, TypeVar, cast, final

from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, LocalUpdate, MiniBatches, Outcome
from fedpisa.clients.batches import Schedule
from fedpisa.components import kebab, nearest
from fedpisa.strategies.base import Algorithm, ClientStates, Cohort, Objective
from fedpisa.strategies.optimizer import Optimizer
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.task import Task

MULTIPLIED: Final = ("learning-rate", "step-size", "server-learning-rate", "server-step")
"""Keys that a factor multiplies."""
DIVIDED: Final = ("sigma", "rho", "proximity")
"""Keys that it divides."""

Part = TypeVar("Part")


def annealed(
    algorithm: Algorithm, factors_T: tuple[float, ...], keys: tuple[str, ...] | None = None
) -> Algorithm:
    """Return the algorithm with a factor for each round; as it is if all of them are 1.

    Parameters
    ----------
    algorithm
        What is run.
    factors_T
        The factor of round 1, 2, ...; later rounds have the last one.
    keys
        What it acts on: by default ``learning-rate`` and ``step-size``, or, of an algorithm without them, all of
        `DIVIDED` that it has.

    Raises
    ------
    ValueError
        If the algorithm has no such key, or the key may not change.

    Examples
    --------
    >>> from fedpisa.strategies.pisa import Pisa
    >>> annealed(Pisa(), (1.0, 0.5)).at_round(2).local_update.sigma / Pisa().local_update.sigma
    2.0
    """
    if set(factors_T) == {1.0}:
        return algorithm
    found = dict(_scalable(algorithm))
    if keys is None:
        keys = tuple(name for name in ("learning-rate", "step-size") if name in found)
        keys = keys or tuple(name for name in DIVIDED if name in found)
    listed = ", ".join(found) or "none"
    if not keys:
        raise ValueError(f"the schedule has nothing to act on: {type(algorithm).__name__} has none of "
                         f"{', '.join((*MULTIPLIED, *DIVIDED))}")  # fmt: skip
    for name in keys:
        if name not in found:
            raise ValueError(
                f"schedule-keys names {name!r}, which cannot be scheduled here{nearest(name, found)} "
                f"(what can: {listed})"
            )
        if name in algorithm.constants:
            raise ValueError(
                f"schedule-keys names {name!r}, which must not change with the round: {algorithm.constants[name]}"
            )
        if found[name] is None:
            raise ValueError(f"schedule-keys names {name!r}, which has no value: set it")
    # What does not take a scaled value says so now.
    scaled(algorithm, keys, next(factor for factor in factors_T if factor != 1))
    return Annealed(algorithm, factors_T, keys)


def _scalable(part: object) -> Iterator[tuple[str, float | None]]:
    """Yield name and value of the hyper-parameters that a factor may act on, wherever in a part they are."""
    if isinstance(part, Optimizer):
        yield "learning-rate", 1.0
    elif is_dataclass(part):
        for item in fields(part):
            name, value = kebab(item.name), getattr(part, item.name)
            if name in MULTIPLIED or name in DIVIDED:
                yield name, value
            yield from _scalable(value)


def scaled(part: Part, keys: tuple[str, ...], factor: float) -> Part:
    """Return a dataclass with these hyper-parameters multiplied or divided, wherever in it they are.

    Examples
    --------
    >>> from fedpisa.clients.pisa import PisaUpdate
    >>> update = scaled(PisaUpdate(sigma=1.0, rho=4.0), ("sigma",), 0.5)
    >>> update.sigma, update.rho
    (2.0, 4.0)
    """
    if isinstance(part, Optimizer):
        return cast(Part, replace(part, rate=factor) if "learning-rate" in keys else part)
    changes: dict[str, Any] = {}
    for item in fields(cast(Any, part)):
        value = getattr(part, item.name)
        if kebab(item.name) in keys:
            changes[item.name] = value / factor if kebab(item.name) in DIVIDED else value * factor
        elif is_dataclass(value):
            changes[item.name] = scaled(value, keys, factor)
    return cast(Part, replace(cast(Any, part), **changes))


@final
@dataclass(frozen=True)
class AnnealedUpdate(LocalUpdate):
    """A local update whose hyper-parameters change with the round; see `annealed`."""

    update: LocalUpdate
    factors_T: tuple[float, ...]
    keys: tuple[str, ...]

    @property
    def incremental(self) -> bool:
        """Whether uploads are increments, which no schedule changes."""
        return self.update.incremental

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the update cannot train the task's module."""
        self.update.check(task, x)

    def at_round(self, server_round: int) -> LocalUpdate:
        """Return the update itself, with its hyper-parameters of ``server_round``."""
        return scaled(self.update, self.keys, _at(self.factors_T, server_round)).at_round(server_round)

    def init(self, params_P: Tensor) -> Arrays:
        """Return the client's own state before its first round."""
        return self.update.init(params_P)

    def schedule(self) -> Schedule:
        """Not known without a round."""
        self._refuse()

    def start(self, down: Arrays, state: Arrays) -> Arrays:
        """Not known without a round."""
        self._refuse()

    def step(
        self, gradient: Gradient, down: Arrays, state: Arrays, work: Arrays, batch: MiniBatches
    ) -> Arrays:
        """Not known without a round."""
        self._refuse()

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> Outcome:
        """Not known without a round."""
        self._refuse()

    def _refuse(self) -> Never:
        raise TypeError("hyper-parameters that change with the round: ask at_round first")


@final
@dataclass(frozen=True)
class Annealed(Algorithm):
    """An algorithm whose hyper-parameters change with the round; see `annealed`."""

    algorithm: Algorithm
    factors_T: tuple[float, ...]
    keys: tuple[str, ...]
    local_update: LocalUpdate = field(init=False)

    def __post_init__(self) -> None:
        update = AnnealedUpdate(self.algorithm.local_update, self.factors_T, self.keys)
        object.__setattr__(self, "local_update", update)

    @property
    def regularization(self) -> float:
        """Coefficient of ``||w||^2 / 2`` in the objective, which no schedule changes."""
        return self.algorithm.regularization

    def at_round(self, server_round: int) -> Algorithm:
        """Return the algorithm itself, with its hyper-parameters of ``server_round``."""
        return scaled(self.algorithm, self.keys, _at(self.factors_T, server_round)).at_round(server_round)

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Return the server's state before the first broadcast."""
        return self.at_round(0).init(params_P, layout)

    def broadcast(self, server: Arrays) -> Arrays:
        """Return what every client of the round receives."""
        return self.algorithm.broadcast(server)

    def weights(self, cohort: Cohort) -> Tensor:
        """Return the cohort's weights ``alpha_i`` ``(S,)``."""
        return self.algorithm.weights(cohort)

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Return the server's next state."""
        return self.at_round(cohort.server_round).step(server, uploads_S, cohort)

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the round's columns."""
        return self.at_round(cohort.server_round).diagnostics(before, after, metrics, cohort)

    def stationarity(self, server: Arrays, states: ClientStates, weights_N: Tensor) -> dict[str, float]:
        """Return columns that need every client's state."""
        return self.algorithm.stationarity(server, states, weights_N)

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return columns that need all of the clients' samples."""
        return self.algorithm.exact_diagnostics(server, states, objective, weights_N)


def _at(factors_T: tuple[float, ...], server_round: int) -> float:
    return factors_T[min(max(server_round, 1), len(factors_T)) - 1]
