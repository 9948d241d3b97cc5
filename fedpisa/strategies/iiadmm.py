"""IIADMM: inexact ADMM that does not send the duals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.iadmm import IIADMMUpdate
from fedpisa.storage import client_rows
from fedpisa.strategies.admm import ConsensusADMM
from fedpisa.strategies.base import Cohort


@final
@dataclass(frozen=True)
class IIADMM(ConsensusADMM):
    r"""Upload the local model alone; client and server each keep a copy of the dual.

    Client, K times: ``w_i <- w_i - (g + pi_i + sigma (w_i - w)) / (proximity + sigma)`` with ``g`` the gradient at
    ``w_i``; then, once, ``pi_i <- pi_i + sigma (w_i - w)``; see `IIADMMUpdate`. The server updates its copy of
    ``pi_i`` in the same way, and ``w = sum_i alpha_i (w_i + pi_i / sigma)``.

    The paper's dual has the opposite sign, and its means are unweighted. Both copies of a dual stay equal when a reply
    is lost, because the client undoes an update that the server does not confirm; see `LocalUpdate.incremental`.

    In the paper all clients take part; ``absent`` selects the contribution of clients that do not.

    Server state: that of `ConsensusADMM`, and ``dual`` ``pi_i`` ``(N, P)``.

    Costs: 1 vector up, 1 down, 2 in the client, 2 N + 1 on the server; K gradients per round.

    References
    ----------
    Ryu, Kim, Kim, Madduri, APPFL: Open-Source Software Framework for Privacy-Preserving Federated Learning,
    arXiv 2202.03672.

    Examples
    --------
    Two clients of 1 and 3 samples that upload 4 and 8, from ``w = 0`` with ``sigma = 1``: ``w`` is the mean 7
    plus 7 of the duals:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> algorithm = IIADMM(IIADMMUpdate(sigma=1.0))
    >>> server = algorithm.init(torch.zeros(1), layout)
    >>> algorithm.step(server, {"params": torch.tensor([[4.0], [8.0]])}, cohort)["params"]
    tensor([14.])
    """

    local_update: IIADMMUpdate = IIADMMUpdate()

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Update the cohort's duals, and solve (2.9)."""
        local_SP, sigma = uploads_S["params"], self.local_update.sigma_at(cohort.server_round)
        dual_NP = client_rows.grown(server.get("dual", local_SP[:0]), cohort.num_clients, cohort.memory_limit)
        dual_SP = client_rows.read(dual_NP, cohort.ids_S) + sigma * (local_SP - server["params"])
        after = super().step(server, {"z": local_SP + dual_SP / sigma}, cohort)
        return {**after, "dual": client_rows.write(dual_NP, cohort.ids_S, dual_SP)}

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without the ``z_i`` and duals of some clients."""
        kept = dict(super().forget(server, ids_S))
        if "dual" in kept:
            zero_SP = torch.zeros_like(client_rows.read(kept["dual"], ids_S))
            kept["dual"] = client_rows.write(kept["dual"], ids_S, zero_SP)
        return kept
