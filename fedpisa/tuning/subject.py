"""A subject of a tuning: one variant at one point of the sweep, and its search space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import PurePosixPath
from typing import final

from fedpisa import components
from fedpisa.config.run import RunConfig, override
from fedpisa.families import Permission, permitted
from fedpisa.simulation.federation import build_algorithm, build_schedule
from fedpisa.tuning.space import MOST_POINTS, Range, Space


@final
@dataclass(frozen=True)
class Subject:
    """One variant at one point of the sweep; subjects are tuned separately.

    Parameters
    ----------
    variant
        The variant's name.
    point
        Values of the swept keys.
    path
        ``<variant>/<point>``, as in a study's directory.
    keys
        All keys except the seed.
    space
        Search space of each searched key.
    permission
        Modules that the keys may name; ``None`` if they come from Python.
    earlier
        The search spaces before each extension.
    held_out
        The trials' ``validation-fraction``, if the study does not set it.
    """

    variant: str
    point: Mapping[str, object]
    path: PurePosixPath
    keys: Mapping[str, object]
    space: Mapping[str, Space]
    permission: Permission | None = field(default=None, compare=False, repr=False)
    earlier: tuple[Mapping[str, Space], ...] = ()
    held_out: float = 0.0

    @property
    def size(self) -> float:
        """Number of configurations in the search space; infinite if one of its ranges is continuous."""
        return math.prod(float(space.size) for space in self.space.values())

    def grid(self) -> list[dict[str, object]]:
        """Return the points of the grid; the last key varies fastest, and the points of an extension come last.

        Examples
        --------
        >>> from fedpisa.tuning.space import parse_space
        >>> space = {"a": parse_space([1, 2]), "b": parse_space(["x", "y"])}
        >>> Subject("s", {}, PurePosixPath("s"), {}, space).grid()[1:3]
        [{'a': 1, 'b': 'y'}, {'a': 2, 'b': 'x'}]
        """
        grids = [
            {key: _grid(key, one) for key, one in space.items()} for space in (*self.earlier, self.space)
        ]
        size = sum(math.prod(map(len, values.values())) for values in grids)
        if size > MOST_POINTS:
            raise ValueError(
                f"{self}: a grid of {size} points is too large: search at most {MOST_POINTS}, or take sampler = "
                '"tpe"'
            )
        points = (
            dict(zip(values, chosen, strict=True)) for values in grids for chosen in product(*values.values())
        )
        return list({repr(point): point for point in points}.values())

    def widened(self, spaces: Mapping[str, Space]) -> Subject:
        """Return the subject with some of its spaces widened."""
        return replace(self, space={**self.space, **spaces}, earlier=(*self.earlier, self.space))

    def check(self, key: str, value: object) -> None:
        """Raise a ValueError if a key does not allow a value."""
        config = self.config({key: value}, 0)
        build_schedule(config, build_algorithm(config))

    def allows(self, key: str, value: object) -> bool:
        """Return whether a key allows a value."""
        try:
            self.check(key, value)
        except (ValueError, OverflowError):
            return False
        return True

    def config(self, values: Mapping[str, object], seed: int) -> RunConfig:
        """Return the configuration of a trial's run with the given values of searched keys."""
        own = {"seed": seed, **({"validation-fraction": self.held_out} if self.held_out else {})}
        with permitted(self.permission):
            return RunConfig.from_mapping(override(self.keys, values, own))

    def final_config(self, values: Mapping[str, object], seed: int) -> RunConfig:
        """Return the configuration of a run of the study; it trains on the trials' validation samples too."""
        return replace(self, held_out=0.0).config(values, seed)

    def __str__(self) -> str:
        return ", ".join(
            [f"variant {self.variant!r}", *(f"{key}={components.show(v)}" for key, v in self.point.items())]
        )


def fitting(subject: Subject, key: str, space: Space) -> Space:
    """Check the values of a space; a range becomes one of whole numbers if the key needs them."""

    def check(value: object) -> None:
        try:
            subject.check(key, value)
        except ValueError as error:
            raise ValueError(f"{subject}: search {key}: {error}") from error

    if not isinstance(space, Range):
        for value in space.values:
            check(value)
        return space
    for value in (space.low, space.high):
        check(value)
    ends = (space.low, space.high, space.step or 0)
    if all(isinstance(end, int) for end in ends):
        try:
            check(space.low + (space.high - space.low) / math.pi)
        except ValueError:
            return replace(space, whole=True)
    step = None if space.step is None else float(space.step)
    return replace(space, low=float(space.low), high=float(space.high), step=step)


def _grid(key: str, space: Space) -> Sequence[object]:
    try:
        return space.grid()
    except ValueError as error:
        raise ValueError(f"search {key}: {error}") from error
