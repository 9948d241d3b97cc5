"""MOON: FedAvg with a contrastive loss on the clients' features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.moon import MoonUpdate
from fedpisa.strategies.averaging import ModelAveraging


@final
@dataclass(frozen=True)
class Moon(ModelAveraging):
    r"""Average models trained on ``f_i(v) + mu l_con(v; w, v_i)``: ``w <- sum_{i in S} alpha_i v_i``.

    ``l_con`` compares a sample's features ``z`` with those under the global model ``w`` and under the client's model
    ``v_i`` of its previous round. It is the mean over the samples of
    ``-log(e^(s_glob / t) / (e^(s_glob / t) + e^(s_prev / t)))``. ``s_glob`` and ``s_prev`` are the cosines of ``z``
    with the two, and ``t`` is the ``temperature``.

    Costs: 1 vector up, 1 down, 1 in the client, 1 on the server; K gradients per round.

    Choices: features are the input of the last layer that has parameters. The paper's networks have a projection
    head of two layers before it; here the model is not changed. In a model of one layer, such as ``logistic``, the
    features are the input, the contrastive loss is constant, and MOON is FedAvg. In its first round a client has no
    previous model. The authors' code uses an initial model; here the first global model that the client receives
    takes its place, with a constant contrastive loss ``log 2``. One previous model is kept, as in the paper's
    experiments. ``z_glob`` and ``z_prev`` are computed without dropout.

    Parameters
    ----------
    local_update
        SGD with the contrastive loss.

    Notes
    -----
    For networks whose features differ between clients, such as image classifiers. It has FedAvg's bias. A step costs
    two forward passes more than FedAvg's.

    References
    ----------
    Li, He, Song, Model-Contrastive Federated Learning, CVPR 2021, arXiv 2103.16257.

    Examples
    --------
    Two clients of 1 and 3 samples that upload 4 and 8 give ``(1 * 4 + 3 * 8) / 4``:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> from fedpisa.strategies.base import Cohort
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> Moon().step({"params": torch.zeros(1)}, {"params": torch.tensor([[4.0], [8.0]])}, cohort)
    {'params': tensor([7.])}
    """

    local_update: MoonUpdate = MoonUpdate()
