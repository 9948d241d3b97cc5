"""FedAvg: the weighted mean of locally trained models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.sgd import LocalSGDUpdate
from fedpisa.strategies.averaging import ModelAveraging


@final
@dataclass(frozen=True)
class FedAvg(ModelAveraging):
    r"""Average the models after local SGD: ``w <- sum_{i in S} alpha_i v_i``, ``alpha_i = n_i / sum_S n_j``.

    With more than one local step on heterogeneous data its fixed point is not the optimum.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        Local SGD.

    Notes
    -----
    The baseline. It is hard to beat with similar clients, because many local steps per round cost no
    communication. Its distance from the optimum grows with the clients' differences and the number of local steps.

    References
    ----------
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

    Examples
    --------
    Two clients of 1 and 3 samples that upload 4 and 8 give ``(1 * 4 + 3 * 8) / 4``:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> from fedpisa.strategies.base import Cohort
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> FedAvg().step({"params": torch.zeros(1)}, {"params": torch.tensor([[4.0], [8.0]])}, cohort)
    {'params': tensor([7.])}
    """

    local_update: LocalSGDUpdate = LocalSGDUpdate()
