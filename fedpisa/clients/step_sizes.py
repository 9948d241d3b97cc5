"""Step sizes that change with the round.

A round runs the algorithm with that round's step sizes. The state that an algorithm keeps between rounds must
therefore not depend on the step size of an earlier round.
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
        Factors of rounds 1, 2, ...; later rounds use the last one, and round 0 (the start) uses the first.
    keys
        Hyper-parameters that the factors apply to.

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
        """Return an algorithm or a local update with the step sizes of a round."""
        if not self.keys:
            return part
        return scaled(part, self.keys, self.factors_T[min(max(server_round, 1), len(self.factors_T)) - 1])


UNSCHEDULED: Final = StepSizeSchedule()
"""The schedule that changes nothing."""


def step_sizes(part: Any) -> Iterator[tuple[str, bool, float | str | None]]:
    """Yield key, ``inverse`` and value of each step size of a dataclass and of the dataclasses in it.

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
    """Return a dataclass with some step sizes, its own and those of nested dataclasses, changed by a factor."""
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
    """Return the `Step` annotation of each field of a dataclass; empty for any other class."""
    parameters = inspect_component(PART, cls.__name__, cls).parameters if is_dataclass(cls) else ()
    return {parameter.name: _step(parameter.key and parameter.key.annotation) for parameter in parameters}


def _step(annotation: object) -> Step | None:
    if isinstance(annotation, Step):
        return annotation
    return next(filter(None, map(_step, get_args(annotation))), None)
