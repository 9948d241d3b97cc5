"""FedDyn: dynamic regularisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.base import Arrays
from fedpisa.clients.feddyn import FedDynUpdate
from fedpisa.strategies.base import Cohort, client_mass, updated_mean, weighted_mean
from fedpisa.strategies.primaldual import PrimalDual


@final
@dataclass(frozen=True)
class FedDyn(PrimalDual):
    r"""Correct the mean of the cohort's models by the mean of all clients' duals.

    Client: SGD on ``f_i(v) - <h_i, v> + sigma/2 ||v - w||^2``, ``h_i <- h_i - sigma (v_i - w)``; see `FedDynUpdate`.
    Server: ``h <- h - sigma sum_{i in S} alpha_i (v_i - w)``, ``w <- sum_S alpha_i v_i / sum_S alpha_i - h / sigma``.

    The paper's ``alpha`` is ``sigma`` here, and its means are unweighted. ``h = sum_i alpha_i h_i`` is over all ``N``
    clients, the models' mean over the cohort. A fixed point has ``v_i = w`` and ``h = 0`` and is the optimum, also
    with partial participation. The total ``sum_j n_j`` in ``alpha_i`` is known once all clients have been seen. Until
    then it is ``N`` times the mean ``n_i`` of the clients seen so far; with uniform weights ``alpha_i`` is the
    paper's ``1/N`` from the first round. With full participation it is `FedADMM`, round by round. ``lambda`` is an
    extension: ``w`` is multiplied by ``sigma / (sigma + lambda)``.

    The paper solves the client's problem exactly. Here SGD takes a few steps, which changes the speed but not the
    fixed point.

    Server state: ``params`` ``w``; ``dual`` ``sum_i alpha_i pi_i = -h`` ``(P,)``; ``num-examples`` ``(N,)``, 0 for a
    client not seen yet.

    Costs: 1 vector up, 1 down, 1 in the client, 2 on the server; K gradients per round.

    References
    ----------
    Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021.

    Examples
    --------
    Two clients of 1 and 3 samples that upload 4 and 8, from ``w = 0`` with ``sigma = 1``: ``w`` is the mean 7
    plus 7 of the duals:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> algorithm = FedDyn(FedDynUpdate(sigma=1.0))
    >>> server = algorithm.init(torch.zeros(1), layout)
    >>> server = algorithm.step(server, {"params": torch.tensor([[4.0], [8.0]])}, cohort)
    >>> server["params"], server["dual"]
    (tensor([14.]), tensor([7.]))
    """

    local_update: FedDynUpdate = FedDynUpdate()

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Update the mean dual, and correct the mean model by it."""
        v_SP, sigma = uploads_S["params"], self.local_update.sigma_at(cohort.server_round)
        mass_S = client_mass(cohort.num_examples_S, self.weighting)
        change_P = sigma * weighted_mean(mass_S, v_SP - server["params"])
        mean = updated_mean(server, "dual", change_P, self.weighting, cohort)
        z_P = weighted_mean(self.weights(cohort), v_SP) + mean["dual"] / sigma
        return {"params": self.shrunk(z_P, cohort.server_round), **mean}
