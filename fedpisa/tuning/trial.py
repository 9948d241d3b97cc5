"""A trial and how it ended."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, Self, final

import pydantic

from fedpisa.tuning.metric import Metric
from fedpisa.typing import NonNegative, NonNegativeInt

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

State = Literal["running", "finished", "pruned", "diverged", "failed"]


@final
@dataclass(frozen=True)
class Trial:
    """One trial.

    Parameters
    ----------
    index
        Index in the subject's budget, from 0.
    keys
        Values of the searched keys.
    state
        ``running``, or how the trial ended.
    metric
        Metric at the end, or at the rung that pruned the trial; infinite if diverged, ``None`` if failed.
    rounds
        Trained rounds, over all seeds.
    seconds
        Duration.
    error
        Reason of a failure.
    gradients
        Gradients of single samples; ``None`` if an earlier version did not count them.
    early
        Metric at the first rung, if the trial reached it.
    accuracy
        Mean accuracy on validation samples after the last round of each seed, if the trial finished and measured it.
    """

    index: int
    keys: Mapping[str, object]
    state: State
    metric: float | None = None
    rounds: int = 0
    seconds: float = 0.0
    error: str = ""
    gradients: int | None = 0
    early: float | None = None
    accuracy: float | None = None


@final
class Claimed(pydantic.BaseModel, strict=True):
    """Which index a stored trial has, and the folder of the process that claimed it."""

    index: Annotated[int, pydantic.Field(ge=0)] | None = None
    worker: Annotated[str, pydantic.Field(pattern=r"^[\w-]+$")] | None = None

    @classmethod
    def of(cls, trial: FrozenTrial) -> Self:
        """Return the claim of a stored trial; it has none if its process died before."""
        return cls.model_validate(trial.user_attrs.get("claim", {}))


@final
class Ended(pydantic.BaseModel, strict=True):
    """How a stored trial ended; see `Trial`."""

    state: State
    metric: str | None
    rounds: NonNegativeInt
    seconds: NonNegative
    error: str
    gradients: NonNegativeInt | None = None
    accuracy: float | None = None

    @pydantic.field_validator("metric")
    @classmethod
    def _is_a_number(cls, text: str | None) -> str | None:
        if text is not None and math.isnan(float(text)):
            raise ValueError(f"{text} is not a number")
        return text


def best_of(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the best finished trial, the first of equals, or ``None`` if no trial finished."""
    ended = [trial for trial in trials if trial.state == "finished" and trial.metric is not None]
    return min(ended, key=lambda trial: (metric.rank(trial.metric or 0), trial.index), default=None)
