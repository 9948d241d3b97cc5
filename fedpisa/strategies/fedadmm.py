"""FedADMM: ADMM with partial participation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.base import Arrays
from fedpisa.clients.fedadmm import FedADMMUpdate
from fedpisa.strategies.base import Cohort, weighted_mean
from fedpisa.strategies.primaldual import TrackedConsensus
from fedpisa.typing import StepSize


@final
@dataclass(frozen=True)
class FedADMM(TrackedConsensus):
    r"""Local SGD on the augmented Lagrangian; the server tracks the mean of ``z_i = w_i + pi_i / sigma``.

    Client: K steps of SGD on ``f_i(v) + <pi_i, v - w> + sigma/2 ||v - w||^2``, ``pi_i <- pi_i + sigma (w_i - w)``. It
    uploads the change of ``z_i``; see `FedADMMUpdate`. Server: ``w <- w + (eta / |S|) sum_{i in S} change_i``.

    The paper does not fix ``eta``. Only ``eta = |S| / N`` keeps ``w`` the mean of all ``z_i``, so that the limit has
    ``sum_i alpha_i pi_i = 0`` and is the optimum. It is the default; with weights,
    ``w <- w + sum_S alpha_i change_i``, see `TrackedConsensus`. In the paper a client that has not been sampled yet
    counts as ``w^0``; here the mean leaves it out. In the paper SGD starts at ``w`` or at the client's last model;
    here it starts at ``w``.

    Costs: 1 vector up, 1 down, 2 in the client, 2 on the server; K gradients per round.

    Parameters
    ----------
    server_step
        The paper's ``eta``, the factor of the cohort's weighted mean change. By default the cohort's share of all
        clients' weights. With partial participation, any other value has a limit other than the optimum.

    References
    ----------
    Gong, Li, Freris, FedADMM: A Robust Federated Deep Learning Framework with Adaptivity to System
    Heterogeneity, ICDE 2022.

    Examples
    --------
    Two clients of 1 and 3 samples whose ``z_i`` change from 0 to 4 and 8:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> server = FedADMM().init(torch.zeros(1), layout)
    >>> FedADMM().step(server, {"change": torch.tensor([[4.0], [8.0]])}, cohort)["params"]
    tensor([7.])
    """

    local_update: FedADMMUpdate = FedADMMUpdate()
    server_step: StepSize | None = None

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Add the changes to the mean of all ``z_i``, or ``eta`` times the mean change to ``w``."""
        if self.server_step is None:
            return super().step(server, uploads_S, cohort)
        change_P = weighted_mean(self.weights(cohort), uploads_S["change"])
        mean_P = server.get("mean", server["params"]) + self.server_step * change_P
        return {"params": self.shrunk(mean_P, cohort.server_round), "mean": mean_P}
