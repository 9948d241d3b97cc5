"""Base classes of the primal-dual family on the server.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.dual import DualUpdate
from fedpisa.storage import client_rows
from fedpisa.strategies.base import (
    Algorithm,
    ClientStates,
    Cohort,
    Weighting,
    client_mass,
    norm,
    shares,
    weighted_mean,
)
from fedpisa.tasks.layout import ParamLayout
from fedpisa.typing import NonNegative


@dataclass(frozen=True)
class PrimalDual(Algorithm, ABC):
    r"""Saddle point of ``sum_i alpha_i [F_i(w_i) + <pi_i, w_i - w> + sigma/2 ||w_i - w||^2] + lambda/2 ||w||^2``.

    The weights are outside the brackets, so a client does not need to know them. A saddle point has ``w_i = w``,
    ``pi_i = -grad F_i(w)`` and ``sum_i alpha_i pi_i = lambda w``. It is the optimum of
    ``sum_i alpha_i F_i(w) + lambda/2 ||w||^2`` for any weights. With ``alpha_i = 1/N`` the algorithms equal those of
    papers with unweighted means.

    For given local models and duals, the minimiser is ``w = sigma z / (sigma + lambda)`` with
    ``z = sum_i alpha_i (w_i + pi_i / sigma)``. The first broadcast is this ``w`` at ``w_i = w^0``, ``pi_i = 0``.

    Parameters
    ----------
    local_update
        The clients' primal-dual update.
    lambda_
        Global L2 coefficient ``lambda``.
    weighting
        Clients' weights ``alpha_i``: ``"num-examples"`` for ``n_i / n``, or ``"uniform"``.
    """

    local_update: DualUpdate
    lambda_: NonNegative = 0.0
    weighting: Weighting = "num-examples"

    @property
    def regularization(self) -> float:
        """Return ``lambda + mu``."""
        return self.lambda_ + self.local_update.mu

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start at ``w`` for ``w_i = w^0``, ``pi_i = 0``."""
        return {"params": self.shrunk(params_P, 0)}

    def shrunk(self, z_P: Tensor, server_round: int) -> Tensor:
        """Return ``sigma z / (sigma + lambda)`` ``(P,)``, the proximal step of the global L2 term."""
        sigma = self.local_update.sigma_at(server_round)
        return z_P * (sigma / (sigma + self.lambda_))

    def weights(self, cohort: Cohort) -> Tensor:
        """Return ``alpha_i`` over the cohort ``(S,)``."""
        return shares(cohort.num_examples_S, self.weighting)

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the residuals.

        ``primal_residual`` is ``sqrt(sum alpha_i ||w_i - w||^2)`` over the cohort, ``dual_residual``
        ``sigma ||w^{l+1} - w^l||``.
        """
        sigma = self.local_update.sigma_at(cohort.server_round)
        return {
            **{name: value for name, value in metrics.items() if name != "squared-drift"},
            "sigma": sigma,
            "primal_residual": sqrt(max(metrics["squared-drift"], 0.0)),
            "dual_residual": sigma * norm(after["params"] - before["params"]),
        }

    def stationarity(self, server: Arrays, states: ClientStates, weights_N: Tensor) -> dict[str, float]:
        """Return ``||sum_i alpha_i pi_i - lambda w||``, zero at a stationary point."""
        return {
            "stationarity": norm(states.weighted_sum("dual", weights_N) - self.lambda_ * server["params"])
        }


@dataclass(frozen=True)
class TrackedConsensus(PrimalDual, ABC):
    r"""Track ``z = sum_i alpha_i z_i`` by the clients' changes: ``z += sum_{i in S} alpha_i (z_i^new - z_i)``.

    The mean is over the clients seen so far, ``alpha_i = n_i / sum_seen n_j``, and ``w = sigma z / (sigma + lambda)``.
    A client's first change is relative to the global model, which serves as its previous ``z_i``. The server keeps no
    vectors of clients. Updates are `LocalUpdate.incremental`, so a lost reply does not bias the mean.

    Server state: ``params`` ``w``; ``mean`` ``z`` ``(P,)``; ``num-examples`` ``(N,)``, 0 for a client not seen yet.
    """

    constants: ClassVar[Mapping[str, str]] = {
        "sigma": "the server tracks the mean of z_i = w_i + pi_i / sigma, which needs the same sigma in all rounds"
    }

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Add the cohort's changes to the mean."""
        change_SP, n_S = uploads_S["change"], client_mass(cohort.num_examples_S, self.weighting)
        known_N = client_rows.grown(server.get("num-examples", cohort.num_examples_S[:0]), cohort.num_clients)
        mass = float(client_mass(known_N, self.weighting).sum())
        joined = float(n_S[known_N[cohort.ids_S] == 0].sum())
        mean_P = (
            (mass * server["mean"] if mass else 0) + joined * server["params"] + weighted_mean(n_S, change_SP)
        ) / (mass + joined)
        return {
            "params": self.shrunk(mean_P, cohort.server_round),
            "mean": mean_P,
            "num-examples": known_N.index_copy_(0, cohort.ids_S, cohort.num_examples_S),
        }
