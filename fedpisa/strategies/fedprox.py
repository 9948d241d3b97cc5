"""FedProx: FedAvg with a proximal term in the clients' loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.fedprox import ProximalSGDUpdate
from fedpisa.strategies.averaging import ModelAveraging


@final
@dataclass(frozen=True)
class FedProx(ModelAveraging):
    r"""Average models trained on ``f_i(v) + mu/2 ||v - w||^2``: ``w <- sum_{i in S} alpha_i v_i``.

    The gradient of the proximal term is ``mu (v - w)``. It vanishes at ``v = w``, so the fixed point is biased as
    FedAvg's is. A larger ``proximal-mu`` makes the bias smaller.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Choices: the paper solves the local problem to some accuracy; here it takes ``local-epochs`` or ``local-steps`` of
    SGD. The paper's analysis samples clients by size and takes the plain mean. Here, as in its experiments and in
    FedAvg, clients are sampled uniformly and weighted by ``alpha_i = n_i / sum_S n_j``.

    Parameters
    ----------
    local_update
        SGD with the proximal term.

    References
    ----------
    Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv 1812.06127.

    Examples
    --------
    Two clients of 1 and 3 samples that upload 4 and 8 give ``(1 * 4 + 3 * 8) / 4``:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> from fedpisa.strategies.base import Cohort
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> FedProx().step({"params": torch.zeros(1)}, {"params": torch.tensor([[4.0], [8.0]])}, cohort)
    {'params': tensor([7.])}
    """

    local_update: ProximalSGDUpdate = ProximalSGDUpdate()
