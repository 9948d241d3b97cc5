"""The server of PISA, its variants and other ADMM methods whose clients upload ``z_i``.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.storage import client_rows
from fedpisa.strategies.base import (
    ClientStates,
    Cohort,
    Objective,
    client_mass,
    norm,
    remember,
    shares,
    sum_over_clients,
    weighted_mean,
    without_clients,
)
from fedpisa.strategies.primaldual import PrimalDual


def solve_consensus(weights_S: Tensor, sigma_S: Tensor, z_SP: Tensor, lambda_: float) -> Tensor:
    """Return PISA's (2.9): ``(sum alpha_i sigma_i z_i) / (sum alpha_i sigma_i + lambda)`` ``(P,)``.

    Examples
    --------
    >>> solve_consensus(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), torch.tensor([[1.0], [5.0]]), 0.5)
    tensor([2.])
    """
    stiffness_S = weights_S * sigma_S
    return weighted_mean(stiffness_S, z_SP) / (stiffness_S.sum() + lambda_)


@dataclass(frozen=True)
class ConsensusADMM(PrimalDual, ABC):
    r"""Set ``w`` to the exact minimiser of the augmented Lagrangian (2.9) after each round.

    ``w = (sum_i alpha_i sigma_i z_i) / (sum_i alpha_i sigma_i + lambda)``, ``z_i = w_i + pi_i / sigma_i``.
    The first broadcast is (2.9) at ``w_i = w^0``, ``pi_i = 0``: ``sigma w^0 / (sigma + lambda)``.

    Server state: ``params`` ``w``. With ``absent = "keep"`` also, for each client, the last ``z_i`` ``(N, P)``,
    ``sigma_i`` and ``n_i`` ``(N,)``, with ``n_i = 0`` for a client not seen yet. After a round with absent clients
    also ``sum`` ``sum_i n_i sigma_i z_i`` ``(P,)``, so that the cost of a round does not depend on the number of
    absent clients.

    Parameters
    ----------
    absent
        Contribution of clients that are not in the round: ``"keep"`` their last ``z_i``, or ``"drop"`` them. With full
        participation both give the same result, bit for bit.
    """

    absent: Literal["keep", "drop"] = "keep"

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Solve (2.9) over the clients seen so far, or over the cohort."""
        z_SP, n_S = uploads_S["z"], cohort.num_examples_S
        sigma_S = torch.full_like(n_S, self.local_update.sigma_at(cohort.server_round))
        if self.absent == "keep" and not cohort.is_full:
            return self._with_the_absent(server, z_SP, sigma_S, cohort)
        kept = {"z": z_SP, "sigma": sigma_S, "num-examples": n_S} if self.absent == "keep" else {}
        alpha_S = shares(n_S, self.weighting)
        return {
            "params": solve_consensus(alpha_S, sigma_S, z_SP, self.lambda_),
            **remember(server, kept, cohort),
        }

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without the ``z_i`` of some clients."""
        return without_clients(server, ids_S)

    def _with_the_absent(self, server: Arrays, z_SP: Tensor, sigma_S: Tensor, cohort: Cohort) -> Arrays:
        """Solve (2.9) over the clients seen so far, with the sum updated by the cohort's terms."""
        sum_P, memory = sum_over_clients(server, z_SP, sigma_S, "sigma", self.weighting, cohort)
        mass_N = client_mass(memory["num-examples"], self.weighting)
        consensus_P = sum_P / (mass_N @ memory["sigma"] + mass_N.sum() * self.lambda_)
        return {"params": consensus_P.to(z_SP.dtype), **memory}

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the residuals and, if clients report ``lagrangian``, the augmented Lagrangian (2.6).

        It is an estimate from the round's mini-batches: ``F_i(w_i)`` is extrapolated to first order with the
        gradients of the local steps.
        """
        columns = super().diagnostics(before, after, metrics, cohort)
        if "lagrangian" in columns:
            ridge = self.lambda_ / 2 * norm(before["params"]) ** 2
            columns["augmented_lagrangian"] = columns.pop("lagrangian") + ridge
        return columns

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return `Algorithm.exact_diagnostics` and, if the server keeps all ``z_i``, (2.6) at the current state.

        A client that never took part has ``w_i = w``, ``pi_i = 0``.
        """
        columns = super().exact_diagnostics(server, states, objective, weights_N)
        if "z" not in server:
            return columns
        w_P, mu = server["params"], self.local_update.mu
        total = self.lambda_ / 2 * norm(w_P) ** 2
        for client_id, alpha in enumerate(weights_N.tolist()):
            state = states.state(client_id)
            seen = state is not None and bool(server["num-examples"][client_id] > 0)
            dual_P = state["dual"] if state is not None and seen else torch.zeros_like(w_P)
            sigma = float(server["sigma"][client_id])
            id_1 = torch.tensor([client_id], device=w_P.device)
            local_P = client_rows.read(server["z"], id_1)[0] - dual_P / sigma if seen else w_P
            drift_P = local_P - w_P
            loss = objective.client_loss(client_id, local_P) + mu / 2 * norm(local_P) ** 2
            total += alpha * (loss + float(dual_P @ drift_P) + sigma / 2 * norm(drift_P) ** 2)
        return {**columns, "exact_augmented_lagrangian": total}
