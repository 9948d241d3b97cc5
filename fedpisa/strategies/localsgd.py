"""LocalSGD: the plain mean of models after K local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.sgd import LocalSGDUpdate
from fedpisa.strategies.averaging import ModelAveraging
from fedpisa.strategies.base import Cohort


@final
@dataclass(frozen=True)
class LocalSGD(ModelAveraging):
    r"""Average the models after K local SGD steps: ``w <- (1/S) sum_i v_i``, with equal weights.

    Every client takes the same number of steps, 10 by default.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        Local SGD.

    Notes
    -----
    The variant of FedAvg that theory usually studies. Its objective is the mean over clients, not over samples.

    References
    ----------
    Stich, Local SGD Converges Fast and Communicates Little, 2019.

    Examples
    --------
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> LocalSGD().step({"params": torch.zeros(1)}, {"params": torch.tensor([[4.0], [8.0]])}, cohort)
    {'params': tensor([6.])}
    """

    local_update: LocalSGDUpdate = LocalSGDUpdate(local_steps=10)

    def weights(self, cohort: Cohort) -> Tensor:
        """Return ``1 / S`` for every client."""
        return torch.full_like(cohort.num_examples_S, 1 / len(cohort.num_examples_S))
