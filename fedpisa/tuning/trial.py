"""A trial and how it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

from fedpisa.tuning.metric import Metric, maximized

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


def best_of(trials: Sequence[Trial], metric: Metric) -> Trial | None:
    """Return the best finished trial, the first of equals, or ``None`` if no trial finished."""
    ended = [trial for trial in trials if trial.state == "finished" and trial.metric is not None]
    sign = -1 if maximized(metric) else 1
    return min(ended, key=lambda trial: (sign * (trial.metric or 0), trial.index), default=None)
