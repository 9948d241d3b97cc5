"""The server of PISA, shared by its named variants.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.pisa import PisaUpdate
from fedpisa.layout import ParamLayout
from fedpisa.strategies.base import Algorithm, ClientStates, Cohort, Objective, norm, weighted_mean
from fedpisa.typing import NonNegative


def solve_consensus(weights_S: Tensor, sigma_S: Tensor, z_SP: Tensor, lambda_: float) -> Tensor:
    """Return PISA's (2.9): ``(sum alpha_i sigma_i z_i) / (sum alpha_i sigma_i + lambda)`` ``(P,)``.

    Examples
    --------
    >>> solve_consensus(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0]), torch.tensor([[1.0], [5.0]]), 0.5)
    tensor([2.])
    """
    stiffness_S = weights_S * sigma_S
    return weighted_mean(stiffness_S, z_SP) / (float(stiffness_S.sum()) + lambda_)


@dataclass(frozen=True)
class ConsensusADMM(Algorithm, ABC):
    r"""Close every round with the exact minimiser of the augmented Lagrangian in ``w`` (2.9).

    ``w = (sum_i alpha_i sigma_i z_i) / (sum_i alpha_i sigma_i + lambda)``, ``z_i = w_i + pi_i / sigma_i``.
    The first broadcast is (2.9) at ``w_i = w^0``, ``pi_i = 0``: ``sigma w^0 / (sigma + lambda)``.

    Server state: ``params`` ``w``; with ``absent = "keep"`` also every client's last ``z_i`` ``(N, P)``,
    ``sigma_i`` and ``n_i`` ``(N,)``, ``n_i = 0`` for a client not seen yet.

    Parameters
    ----------
    local_update
        PISA's client.
    lambda_
        Global L2 coefficient ``lambda``.
    absent
        What a client that is not in the round counts for: ``"keep"`` its last ``z_i``, ``"drop"`` nothing.
        With every client in every round both are the same, bit for bit.
    weighting
        ``alpha_i``: by ``"num-examples"`` ``n_i / n``, or ``"uniform"``.
    """

    local_update: PisaUpdate = PisaUpdate()
    lambda_: NonNegative = 0.0
    absent: Literal["keep", "drop"] = "keep"
    weighting: Literal["num-examples", "uniform"] = "num-examples"

    @property
    def regularization(self) -> float:
        """Return ``lambda + mu``."""
        return self.lambda_ + self.local_update.mu

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Return the first broadcast and an empty memory."""
        sigma = self.local_update.sigma_at(0)
        return {"params": params_P * (sigma / (sigma + self.lambda_))}

    def weights(self, cohort: Cohort) -> Tensor:
        """Return ``alpha_i`` over the cohort."""
        return self._normalised(cohort.num_examples_S)

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Solve (2.9) over the clients seen so far, or over the round's alone."""
        z_SP, n_S = uploads_S["z"], cohort.num_examples_S
        sigma_S = torch.full_like(n_S, self.local_update.sigma_at(cohort.server_round))
        memory: Arrays = {}
        if self.absent == "keep":
            memory = self._remember(server, z_SP, sigma_S, cohort)
            z_SP, sigma_S, n_S = memory["z"], memory["sigma"], memory["num-examples"]
        return {"params": solve_consensus(self._normalised(n_S), sigma_S, z_SP, self.lambda_), **memory}

    def diagnostics(
        self, before: Arrays, after: Arrays, metrics: Mapping[str, float], cohort: Cohort
    ) -> dict[str, float]:
        """Return the residuals and the augmented Lagrangian (2.6), estimated from the round's mini-batches.

        ``primal_residual`` is ``sqrt(sum alpha_i ||w_i - w||^2)`` over the cohort, ``dual_residual``
        ``sigma ||w^{l+1} - w^l||``. For the Lagrangian, ``F_i(w_i)`` is taken to first order from the gradients
        that were evaluated anyway.
        """
        sigma = self.local_update.sigma_at(cohort.server_round)
        ridge = self.lambda_ / 2 * norm(before["params"]) ** 2
        others = {
            name: value for name, value in metrics.items() if name not in ("squared-drift", "lagrangian")
        }
        return {
            **others,
            "sigma": sigma,
            "primal_residual": sqrt(max(metrics["squared-drift"], 0.0)),
            "dual_residual": sigma * norm(after["params"] - before["params"]),
            "augmented_lagrangian": metrics["lagrangian"] + ridge,
        }

    def stationarity(self, server: Arrays, states: ClientStates, weights_N: Tensor) -> dict[str, float]:
        """Return ``||sum_i alpha_i pi_i - lambda w||``, zero at a stationary point."""
        return {
            "stationarity": norm(states.weighted_sum("dual", weights_N) - self.lambda_ * server["params"])
        }

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return `Algorithm.exact_diagnostics` and, where every ``z_i`` is kept, (2.6) at the state reached.

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
            local_P = server["z"][client_id] - dual_P / sigma if seen else w_P
            drift_P = local_P - w_P
            loss = objective.client_loss(client_id, local_P) + mu / 2 * norm(local_P) ** 2
            total += alpha * (loss + float(dual_P @ drift_P) + sigma / 2 * norm(drift_P) ** 2)
        return {**columns, "exact_augmented_lagrangian": total}

    def _normalised(self, num_examples_N: Tensor) -> Tensor:
        """Return ``alpha`` of the clients that are there (``n_i > 0``)."""
        raw_N = (
            num_examples_N
            if self.weighting == "num-examples"
            else (num_examples_N > 0).to(num_examples_N.dtype)
        )
        return raw_N / raw_N.sum()

    def _remember(self, server: Arrays, z_SP: Tensor, sigma_S: Tensor, cohort: Cohort) -> Arrays:
        """Write the replies into the rows of their clients."""
        rows = {"z": z_SP, "sigma": sigma_S, "num-examples": cohort.num_examples_S}
        stacks = {name: _grown(server.get(name, row[:0]), cohort.num_clients) for name, row in rows.items()}
        return {name: stacks[name].index_copy_(0, cohort.ids_S, row) for name, row in rows.items()}


def _grown(stack: Tensor, length: int) -> Tensor:
    """Return a stack with rows of zeros added up to ``length``: clients may join while a run goes on."""
    if len(stack) == length:
        return stack
    grown = stack.new_zeros(length, *stack.shape[1:])
    grown[: len(stack)] = stack
    return grown
