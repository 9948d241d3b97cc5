"""FedNova: normalised averaging of unequal numbers of local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.base import Arrays
from fedpisa.clients.fednova import NormalisedSGDUpdate
from fedpisa.strategies.averaging import WeightedTraining
from fedpisa.strategies.base import Cohort, weighted_mean


@final
@dataclass(frozen=True)
class FedNova(WeightedTraining):
    r"""Average normalised directions: ``w <- w - tau_eff sum_i alpha_i d_i``, ``tau_eff = sum_i alpha_i tau_i``.

    ``d_i = (w - v_i) / tau_i`` with ``tau_i`` local steps, weighted if there is momentum; see `NormalisedSGDUpdate`. It
    removes the bias from unequal numbers of local steps. The bias from local steps themselves, of the order of the
    learning rate, remains. With equal numbers of steps it is FedAvg.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Choices: ``tau_eff`` is the weighted mean of the ``tau_i``, the paper's default. The server has no momentum. The
    mean is over the cohort, with renormalised weights.

    Parameters
    ----------
    local_update
        SGD that uploads a normalised direction and ``tau_i``.

    References
    ----------
    Wang, Liu, Liang, Joshi, Poor, Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    Optimization, NeurIPS 2020, arXiv 2007.07481.

    Examples
    --------
    Two clients of 1 and 3 samples, directions 4 and 8, 1 and 5 steps: ``7 = 1/4 * 4 + 3/4 * 8``, ``tau_eff = 4``.

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> uploads = {"direction": torch.tensor([[4.0], [8.0]]), "tau": torch.tensor([1.0, 5.0])}
    >>> FedNova().step({"params": torch.zeros(1)}, uploads, cohort)
    {'params': tensor([-28.])}
    """

    local_update: NormalisedSGDUpdate = NormalisedSGDUpdate()

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Step along the mean direction, scaled by the mean ``tau_i``."""
        alpha_S = self.weights(cohort)
        tau = weighted_mean(alpha_S, uploads_S["tau"])
        return {"params": server["params"] - tau * weighted_mean(alpha_S, uploads_S["direction"])}
