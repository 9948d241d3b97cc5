"""Scaffnew: ProxSkip for federated learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.scaffnew import ScaffnewUpdate
from fedpisa.strategies.averaging import WeightedTraining
from fedpisa.strategies.base import Cohort, client_mass, sum_over_clients, weighted_mean, without_clients


@final
@dataclass(frozen=True)
class Scaffnew(WeightedTraining):
    r"""Average, ``w <- sum_i alpha_i v_i``, with probability p after each local step along ``g - h_i``.

    Then ``h_i <- h_i + (p / learning-rate) (w - v_i)``, so that ``sum_i alpha_i h_i = 0`` always and ``h_i``
    converges to the client's gradient at the optimum. On strongly convex problems with full gradients it needs
    ``O(sqrt(condition))`` communications, with ``p = 1 / sqrt(condition)`` and ``learning-rate = 1 / L``. The
    gradients per round below are an average. With ``absent = "drop"`` the server keeps only ``w``.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; 1/p gradients per round.

    Choices: a round ends with a communication, so its number of steps is geometric. It depends on the seed and the
    round, and is the same for all clients. The paper's prox step averages ``z_i = v_i - (learning-rate / p) h_i``,
    whose mean is that of ``v_i`` as long as ``sum_i alpha_i h_i = 0``. Clients upload ``z_i``, which determines both
    ``w`` and ``h_i``. In the paper all clients take part with equal weights (``weighting = "uniform"``). By default
    they are weighted by samples, which is the paper's method in the inner product ``sum_i alpha_i <x_i, y_i>``. The
    mean includes the last ``z_i`` of absent clients (``absent = "keep"``); otherwise the optimum is not a fixed
    point.

    If a schedule changes the learning rate, the weight of ``z_i`` is ``alpha_i`` times the ``p / learning-rate`` of its
    round, which keeps ``sum_i alpha_i h_i = 0``.

    Server state: ``params`` ``w``. With ``absent = "keep"`` also, for each client, the last ``z_i`` ``(N, P)``, its
    ``stiffness`` ``s_i = p / learning-rate`` ``(N,)`` and ``num-examples`` ``n_i`` ``(N,)``, 0 for a client not seen
    yet. After a round with absent clients also ``sum`` ``sum_i n_i s_i z_i`` ``(P,)``, so that the cost of a round
    does not depend on the number of absent clients.

    Parameters
    ----------
    local_update
        SGD along ``g - h_i``.
    absent
        Contribution of clients that are not in the round: ``"keep"`` their last ``z_i``, or ``"drop"`` them.

    References
    ----------
    Mishchenko, Malinovsky, Stich, Richtarik, ProxSkip: Yes! Local Gradient Steps Provably Lead to
    Communication Acceleration! Finally!, ICML 2022, arXiv 2202.09357.

    Examples
    --------
    Two clients of 1 and 3 samples; both reply in the first round, and only the first one in the second:

    >>> import torch
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout, algorithm = ParamLayout.of([("weight", torch.zeros(1))]), Scaffnew()
    >>> both = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> server = algorithm.step({"params": torch.zeros(1)}, {"z": torch.tensor([[4.0], [8.0]])}, both)
    >>> server["params"]
    tensor([7.])
    >>> first = Cohort(torch.arange(1), torch.tensor([1.0]), 2, 2, layout)
    >>> algorithm.step(server, {"z": torch.tensor([[0.0]])}, first)["params"]
    tensor([6.])
    """

    local_update: ScaffnewUpdate = ScaffnewUpdate()
    absent: Literal["keep", "drop"] = "keep"

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Average ``z_i`` over the clients seen so far, or over the cohort."""
        if self.absent == "drop":
            return {"params": weighted_mean(self.weights(cohort), uploads_S["z"])}
        stiffness_S = torch.full_like(cohort.num_examples_S, self.local_update.stiffness)
        z_SP = uploads_S["z"]
        sum_P, memory = sum_over_clients(server, z_SP, stiffness_S, "stiffness", self.weighting, cohort)
        total = client_mass(memory["num-examples"], self.weighting) @ memory["stiffness"]
        return {"params": (sum_P / total).to(z_SP.dtype), **memory}

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without the ``z_i`` of some clients."""
        return without_clients(server, ids_S)
