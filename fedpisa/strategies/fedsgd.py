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

    All of `torch.optim`'s first-order optimizers and, with the extra ``optimizers``, those of `pytorch_optimizer`
    that `fedpisa list optimizers` names. Their own options are in the table ``optimizer-options``; ``learning-rate``,
    ``momentum``, ``weight-decay`` and ``nesterov`` are keys. It is centralised training on large batches, and the
    yardstick of the paper's comparison.

    Server state: ``params`` ``w`` and the optimizer's own memory.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        One mean gradient.
    optimizer
        Rule of the step.

    Notes
    -----
    Unbiased for all splits of the data, at one step per round: the choice where rounds are cheap, and the
    yardstick for what local steps gain. Momentum and moments are vectors on the server too: 1 more for
    ``momentum``, 2 more for ``adam``.

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
        """Start at the initial model, the optimizer without memory; refuse one that does not take the model."""
        params = layout.unflatten(params_P)
        self.optimizer.step(params, {name: torch.zeros_like(value) for name, value in params.items()}, {})
        return {"params": params_P}

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Take one optimizer step along the mean gradient."""
        gradient_P = weighted_mean(self.weights(cohort), uploads_S["gradient"])
        layout = cohort.layout
        memory = {name: value for name, value in server.items() if name != "params"}
        params, memory = self.optimizer.step(
            layout.unflatten(server["params"]), layout.unflatten(gradient_P), memory
        )
        return {"params": layout.flatten(params), **memory}
