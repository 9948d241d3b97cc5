"""Relative residual balancing of PISA's ``sigma`` on quadratics, against the best of twenty constant values.

OMP_NUM_THREADS=1 python experiments/automatic/balancing.py
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
CLIENTS, DIMENSION, CONDITION = 10, 20, 100.0
ROUNDS: Final = 2000
LAST_CHANGE: Final = 100
"""Round after which ``sigma`` stays."""
RULES: Final = [(*rule, every) for rule in ((2.0, 1.5), (10.0, 2.0)) for every in (1, 5)]
"""``omega``, the factor of a change and the rounds between two changes."""
BUILT: Final = RULES[3]
"""The rule of ``sigma = "balanced"``."""


@dataclass(frozen=True)
class Problem:
    """Clients' losses ``v' H_i v / 2 - b_i' v``, and the minimiser of their mean."""

    hessians: Floats
    linear: Floats

    @property
    def optimum(self) -> Floats:
        """Minimiser of the mean loss."""
        return np.linalg.solve(self.hessians.mean(0), self.linear.mean(0))

    @property
    def largest(self) -> float:
        """Largest eigenvalue ``L`` of the mean Hessian."""
        return float(np.linalg.eigvalsh(self.hessians.mean(0)).max())

    @property
    def measured(self) -> float:
        """``(sum_i ||H_i g_i||^2 / sum_i ||g_i||^2)^{1/2}`` with the gradients ``g_i`` at 0."""
        images = np.einsum("nij,nj->ni", self.hessians, self.linear)
        return float(np.sqrt((images**2).sum() / (self.linear**2).sum()))


def problem(seed: int, spread: float) -> Problem:
    """Return clients whose own minima are ``spread`` times a normal vector from a common point."""
    rng = np.random.default_rng(seed)
    bases = np.linalg.qr(rng.normal(size=(CLIENTS, DIMENSION, DIMENSION)))[0]
    values = CONDITION ** rng.uniform(-1, 0, (CLIENTS, DIMENSION))
    hessians = np.einsum("nij,nj,nkj->nik", bases, values, bases)
    minima = rng.normal(size=DIMENSION) + spread * rng.normal(size=(CLIENTS, DIMENSION))
    return Problem(hessians, np.einsum("nij,nj->ni", hessians, minima))


def rounds(
    given: Problem, sigma: float, rho: float, steps: int, rule: tuple[float, float, int] | None = None
) -> float:
    """Return the rounds until the model is within 1e-8 of the optimum; ``inf`` if it does not get there."""
    optimum, w = given.optimum, np.zeros(DIMENSION)
    duals = np.zeros_like(given.linear)
    for finished in range(1, ROUNDS + 1):
        drift = np.zeros_like(duals)
        for _ in range(steps):
            gradients = np.einsum("nij,nj->ni", given.hessians, w + drift) - given.linear
            drift -= (duals + gradients + sigma * drift) / (sigma + rho)
        duals += sigma * drift
        before, w = w, (w + drift + duals / sigma).mean(0)
        error = np.linalg.norm(w - optimum) / np.linalg.norm(optimum)
        if error < 1e-8:
            return finished
        if not error < 1e8:
            return inf
        if rule is not None and finished < LAST_CHANGE and finished % rule[2] == 0:
            omega, factor, _ = rule
            primal = root_mean_square(drift) / float(np.linalg.norm(w))
            dual = sigma * float(np.linalg.norm(w - before)) / root_mean_square(duals)
            sigma *= factor if primal > omega * dual else 1 / factor if dual > omega * primal else 1.0
    return inf


def root_mean_square(vectors: Floats) -> float:
    """Return the root of the mean squared norm of some rows."""
    return float(np.sqrt((vectors**2).sum(1).mean()))


def best_constant(given: Problem, steps: int) -> float:
    """Return the fewest rounds of twenty constant values of ``sigma``, with ``rho`` at the largest curvature."""
    grid = given.largest * np.geomspace(1e-2, 1e2, 20)
    return min(rounds(given, float(sigma), given.largest, steps) for sigma in grid)


def shown(ratios: Sequence[float]) -> str:
    """Return the smallest and largest finite ratio, and how many runs did not converge.

    Examples
    --------
    >>> shown([1.0, 2.5, inf])
    '1.0 to 2.5; 1 of 3 fail'
    """
    finite = [ratio for ratio in ratios if ratio < inf]
    text = f"{min(finite):.1f} to {max(finite):.1f}; " if finite else ""
    return f"{text}{len(ratios) - len(finite)} of {len(ratios)} fail"


def main() -> None:
    """Print the rounds of the balanced runs as multiples of those of the best constant value."""
    starts = (0.01, 1.0, 100.0)
    heads = [*(f"start at {start:g} L" for start in starts), "measured start", "measured start, constant"]
    print("| local steps | spread | " + " | ".join(heads) + " |")
    print("| --- " * (len(heads) + 2) + "|")
    for steps, spread in itertools.product((1, 5), (0.1, 1.0, 10.0)):
        problems = [problem(seed, spread) for seed in range(3)]
        pairs = [(given, best_constant(given, steps)) for given in problems]
        cells = [
            [
                rounds(given, start * given.largest, given.largest, steps, rule) / fewest
                for given, fewest in pairs
                for rule in RULES
            ]
            for start in starts
        ]
        for rule in (BUILT, None):
            cells.append(
                [
                    rounds(given, 0.15 * given.measured, 1.5 * given.measured, steps, rule) / fewest
                    for given, fewest in pairs
                ]
            )
        print(f"| {steps} | {spread:g} | " + " | ".join(map(shown, cells)) + " |", flush=True)


if __name__ == "__main__":
    main()
