"""PISA with an optimizer on the server's step, for the family study; it is not part of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.authoring import Arrays, Cohort
from fedpisa.strategies.optimizer import Optimizer
from fedpisa.strategies.pisa_consensus import PisaConsensus

_PREFIX = "optimizer/"


@final
@dataclass(frozen=True)
class OptimizedPisa(PisaConsensus):
    """``w <- optimizer(w, w - c)``, where ``c`` is the consensus (2.9).

    Fixed point: an optimizer stays only if its gradient ``w - c`` is zero. Then ``w`` is the consensus, as in PISA, and
    the optimum. With plain gradient descent and ``learning-rate`` 1 it is PISA.

    With ``rho = sigma``, one local step, full participation, ``Q = I`` and ``lambda = mu = 0``, ``w - c`` is
    ``G / sigma`` with the mean gradient ``G`` at ``w``, in every round: ``z_i = w - (pi_i + g_i) / (2 sigma) + pi_i' /
    sigma`` and ``pi_i' = (pi_i - g_i) / 2``. So with Adam, which does not see the scale of its gradient, it is FedSGD
    with Adam.
    """

    optimizer: Optimizer = Optimizer("sgd", {"lr": 1.0})

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Take one optimizer step towards the consensus."""
        memory = {
            name.removeprefix(_PREFIX): value for name, value in server.items() if name.startswith(_PREFIX)
        }
        before, layout = server["params"].clone(), cohort.layout
        plain = {name: value for name, value in server.items() if not name.startswith(_PREFIX)}
        after = super().step(plain, uploads_S, cohort)
        params, memory = self.optimizer.step(
            layout.unflatten(before), layout.unflatten(before - after["params"]), memory
        )
        kept = {_PREFIX + name: value for name, value in memory.items()}
        return {**after, "params": layout.flatten(params), **kept}
