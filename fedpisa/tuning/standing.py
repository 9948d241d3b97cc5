"""Outcome of a tuning: what it found, what it cost, and what makes it doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import Final, final

from fedpisa.tuning.extension import Edge, edges
from fedpisa.tuning.plan import Plan
from fedpisa.tuning.subject import Subject
from fedpisa.tuning.trial import State, Trial, best_of

SWAPPED: Final = 0.25
"""Share of swapped pairs from which the pruner's early ranking disagrees with the final one."""


@final
@dataclass(frozen=True)
class Standing:
    """Outcome of one subject.

    Parameters
    ----------
    subject
        The subject.
    trials
        Its trials so far.
    best
        The best finished trial, if any.
    edges
        The keys whose best value lies at an edge of its space.
    """

    subject: Subject
    trials: Sequence[Trial]
    best: Trial | None
    edges: Sequence[Edge] = ()

    @classmethod
    def of(cls, plan: Plan, subject: Subject, trials: Sequence[Trial]) -> Standing:
        """Return the outcome of a subject's trials."""
        best = best_of(trials, plan.metric)
        tried = (trial.keys for trial in trials)
        grid = plan.settings.sampler == "grid"
        at = [] if best is None else edges(subject, best.keys, tried, grid=grid)
        return cls(subject, trials, best, at)

    @property
    def counts(self) -> Counter[State]:
        """Number of trials in each state."""
        return Counter(trial.state for trial in self.trials)

    @property
    def rounds(self) -> int:
        """Trained rounds of all trials."""
        return sum(trial.rounds for trial in self.trials)

    @property
    def gradients(self) -> int | None:
        """Gradients of single samples in all trials; ``None`` if a trial of an earlier version did not count them."""
        counted = [trial.gradients for trial in self.trials if trial.gradients is not None]
        return sum(counted) if len(counted) == len(self.trials) else None

    @property
    def seconds(self) -> float:
        """Duration of all trials."""
        return sum(trial.seconds for trial in self.trials)

    @property
    def median(self) -> float | None:
        """Median metric of the finished trials: what values at random reach."""
        ended = [t.metric for t in self.trials if t.state == "finished" and t.metric is not None]
        return median(ended) if ended else None

    @property
    def swapped(self) -> tuple[int, int]:
        """Pairs of complete trials whose order at the first rung and at the end differ, and all pairs.

        A trial is complete if it was not pruned. A trial that diverged after the first rung ended as the worst.
        """
        complete = [
            (trial.early, trial.metric)
            for trial in self.trials
            if trial.state in ("finished", "diverged")
            and trial.early is not None
            and trial.metric is not None
        ]
        pairs = list(combinations(sorted(complete), 2))  # the second of a pair is not lower early
        return sum(one[0] < other[0] and one[1] > other[1] for one, other in pairs), len(pairs)

    @property
    def misled(self) -> bool:
        """Whether the pruner's early ranking disagrees with the final one: at least `SWAPPED` of the pairs do."""
        swapped, pairs = self.swapped
        return bool(pairs) and swapped >= SWAPPED * pairs


def is_complete(plan: Plan, standings: Sequence[Standing]) -> bool:
    """Return whether all trials have ended."""
    return all(
        len(one.trials) - one.counts["running"] == plan.budget(subject)
        for subject, one in zip(plan.subjects, standings, strict=True)
    )
