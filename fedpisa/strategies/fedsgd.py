"""FedSGD: one step of any optimizer along the clients' mean gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.gradient import MeanGradient
from fedpisa.strategies.base import Algorithm, Cohort, weighted_mean
from fedpisa.strategies.optimizer import Optimizer
from fedpisa.tasks.layout import ParamLayout


@final
@dataclass(frozen=True)
class FedSGD(Algorithm):
    r"""One optimizer step on the server: ``G = sum_i alpha_i grad F_i(w; B_i)``, ``w <- optimizer(w, G)``.

    The optimizer is any first-order optimizer of `torch.optim` or, with the extra ``optimizers``, one of
    `pytorch_optimizer`; ``fedpisa list optimizers`` names them. ``learning-rate``, ``momentum``, ``weight-decay`` and
    ``nesterov`` are keys; other options belong in the table ``optimizer-options``. FedSGD equals centralised training
    with large batches, and is the reference of the PISA paper's comparison.

    Server state: ``params`` ``w`` and the optimizer's memory.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        One mean gradient.
    optimizer
        Optimizer of the server's step.

    Notes
    -----
    Unbiased for any split of the data, at one step per round. A good choice if rounds are cheap, and the reference
    for the gain from local steps. Momentum adds 1 vector on the server, ``adam`` adds 2.

    References
    ----------
    McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data, 2017.

    Examples
    --------
    >>> algorithm = FedSGD(optimizer=Optimizer("sgd", {"lr": 0.5}))
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> server = algorithm.init(torch.zeros(1), layout)
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> algorithm.step(server, {"gradient": torch.tensor([[4.0], [8.0]])}, cohort)["params"]
    tensor([-3.5000])
    """

    local_update: MeanGradient = MeanGradient()
    optimizer: Optimizer = Optimizer("sgd", {"lr": 0.1})

    @property
    def regularization(self) -> float:
        """Return ``mu``."""
        return self.local_update.mu

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start at the initial model; raise `ValueError` if the optimizer cannot train it."""
        params = layout.unflatten(params_P)
        self.optimizer.step(params, {name: torch.zeros_like(value) for name, value in params.items()}, {})
        return {"params": params_P}

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Take one optimizer step along the mean gradient."""
        layout, gradient_P = cohort.layout, weighted_mean(self.weights(cohort), uploads_S["gradient"])
        memory = {name: value for name, value in server.items() if name != "params"}
        params, memory = self.optimizer.step(
            layout.unflatten(server["params"]), layout.unflatten(gradient_P), memory
        )
        return {"params": layout.flatten(params), **memory}
