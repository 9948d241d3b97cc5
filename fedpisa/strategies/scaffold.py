"""SCAFFOLD: control variates remove the drift of local steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.scaffold import ScaffoldUpdate
from fedpisa.strategies.averaging import WeightedTraining
from fedpisa.strategies.base import Cohort, client_mass, updated_mean, weighted_mean
from fedpisa.tasks.layout import ParamLayout
from fedpisa.typing import StepSize


@final
@dataclass(frozen=True)
class Scaffold(WeightedTraining):
    r"""Correct each local step by control variates: ``g - c_i + c``.

    Clients, option II: ``c_i <- c_i - c + (w - v_i) / (K learning-rate)``. Server:
    ``w <- w + server-learning-rate sum_{i in S} alpha_i (v_i - w)`` and
    ``c <- c + (|S|/N) sum_{i in S} alpha_i (change of c_i)``. The optimum is its fixed point for any number of local
    steps and of participating clients.

    Costs: 1 vector up, 2 down, 1 in the client, 2 on the server; K gradients per round.

    Choices: all control variates start at zero. The paper sends the change of ``c_i`` as a second vector. Here the
    server computes it, ``(w - v_i) / (K learning-rate) - c``, from the first vector ``v_i - w``. The paper weights
    clients uniformly, ``weighting = "uniform"``. By default, models and control variates are weighted by samples, so
    that the fixed point is the optimum of ``sum_i (n_i/n) f_i``. This requires ``c = sum_i (n_i/n) c_i`` over all
    clients, also with partial participation of clients of unequal size. The server therefore remembers the ``n_i`` of
    the clients seen so far, uses their mean for the others, and changes ``c`` by ``sum_S n_i (change of c_i) / n``.
    For clients of equal size that is the formula above. With momentum, `SGDSteps.path_length` replaces ``K``.

    Server state: ``params`` ``w``, ``control`` ``c``, and ``num-examples`` ``n_i`` ``(N,)``, 0 for a client not seen
    yet.

    Parameters
    ----------
    local_update
        SGD with control variates.
    server_learning_rate
        Length of the server's step; with 1 the new model is the mean of the clients' models.

    References
    ----------
    Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging for Federated Learning, ICML 2020,
    arXiv 1910.06378.

    Examples
    --------
    Two clients of 1 and 3 samples from ``w = 0``, each after two steps of length 0.5:
    ``c_i = (0 - v_i) / 1`` is -4 and -8.

    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> cohort = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> uploads = {"drift": torch.tensor([[4.0], [8.0]]), "length": torch.ones(2)}
    >>> server = Scaffold().step(Scaffold().init(torch.zeros(1), layout), uploads, cohort)
    >>> server["params"], server["control"]
    (tensor([7.]), tensor([-7.]))
    """

    local_update: ScaffoldUpdate = ScaffoldUpdate()
    server_learning_rate: StepSize = 1.0

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start at the initial model with ``c = 0``."""
        return {"params": params_P, "control": torch.zeros_like(params_P)}

    def broadcast(self, server: Arrays) -> Arrays:
        """Return the global model and ``c``."""
        return {"params": server["params"], "control": server["control"]}

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Move the model by the mean drift, and ``c`` by the changes of the ``c_i``."""
        c_P, drift_SP = server["control"], uploads_S["drift"]
        mass_S = client_mass(cohort.num_examples_S, self.weighting)
        change_P = -weighted_mean(mass_S / uploads_S["length"], drift_SP) - float(mass_S.sum()) * c_P
        step_P = self.server_learning_rate * weighted_mean(self.weights(cohort), drift_SP)
        mean = updated_mean(server, "control", change_P, self.weighting, cohort)
        return {"params": server["params"] + step_P, **mean}
