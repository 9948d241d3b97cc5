"""Step sizes that change with the round.

The algorithm of a round is the algorithm with other values, so what it does there is what it would do with those; what
it keeps from round to round must not depend on the value of another round.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Final, TypeVar, cast, final, get_args

from fedpisa.components import kebab
from fedpisa.components.describe import PART, inspect_component
from fedpisa.typing import Step

Part = TypeVar("Part")


@final
@dataclass(frozen=True)
class StepSizeSchedule:
    """A factor of step sizes for each round: it multiplies a `StepSize` and divides an `InverseStepSize`.

    Parameters
    ----------
    factors_T
        The factor of round 1, 2, ...; later rounds have the last one, and round 0, the start, that of round 1.
    keys
        The hyper-parameters on which it acts.

    Examples
    --------
    >>> from fedpisa.clients.pisa import PisaUpdate
    >>> update = StepSizeSchedule((1.0, 0.5), ("sigma",)).scaled(PisaUpdate(sigma=1.0, rho=4.0), server_round=2)
    >>> update.sigma, update.rho
    (2.0, 4.0)
    """

    factors_T: tuple[float, ...] = (1.0,)
    keys: tuple[str, ...] = ()

    def scaled(self, part: Part, server_round: int) -> Part:
        """Return an algorithm or a local update with its step sizes of a round."""
        if not self.keys:
            return part
        return scaled(part, self.keys, self.factors_T[min(max(server_round, 1), len(self.factors_T)) - 1])


UNSCHEDULED: Final = StepSizeSchedule()
"""The schedule that changes nothing."""


def step_sizes(part: Any) -> Iterator[tuple[str, bool, float | None]]:
    """Yield each step size of a dataclass and of the dataclasses in it: its key, whether it is an inverse, its value.

    Examples
    --------
    >>> from fedpisa.clients.pisa import PisaUpdate
    >>> list(step_sizes(PisaUpdate(sigma=1.0, rho=4.0)))
    [('sigma', True, 1.0), ('rho', True, 4.0)]
    """
    for name, step in _steps(part.__class__).items():
        value = getattr(part, name)
        if step is None:
            yield from step_sizes(value)
        else:
            yield step.key or kebab(name), step.inverse, value


def scaled(part: Part, keys: tuple[str, ...], factor: float) -> Part:
    """Return a dataclass with these step sizes, its own and those of the dataclasses in it, changed by a factor."""
    whole: Any = part
    changes: dict[str, Any] = {}
    for name, step in _steps(whole.__class__).items():
        value = getattr(whole, name)
        if step is None:
            changes[name] = scaled(value, keys, factor)
        elif (step.key or kebab(name)) in keys:
            changes[name] = value / factor if step.inverse else value * factor
    return cast(Part, replace(whole, **changes)) if changes else part


@functools.cache
def _steps(cls: type) -> Mapping[str, Step | None]:
    """Return what the annotations of a dataclass say of each of its fields; nothing for another class."""
    parameters = inspect_component(PART, cls.__name__, cls).parameters if is_dataclass(cls) else ()
    return {parameter.name: _step(parameter.key and parameter.key.annotation) for parameter in parameters}


def _step(annotation: object) -> Step | None:
    if isinstance(annotation, Step):
        return annotation
    return next(filter(None, map(_step, get_args(annotation))), None)
