"""Scaffnew: ProxSkip for federated learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

import torch

from fedpisa.clients.base import Arrays
from fedpisa.clients.scaffnew import ScaffnewUpdate
from fedpisa.strategies.averaging import WeightedTraining
from fedpisa.strategies.base import Cohort, client_mass, sum_over_clients, weighted_mean


@final
@dataclass(frozen=True)
class Scaffnew(WeightedTraining):
    r"""Local steps along ``g - h_i`` until a coin, tossed after each, says to average: ``w <- sum_i alpha_i v_i``.

    Then ``h_i <- h_i + (p / learning-rate) (w - v_i)``, so that ``sum_i alpha_i h_i = 0`` always and ``h_i``
    becomes the client's gradient at the optimum. On strongly convex problems with full gradients it needs
    of the order of ``sqrt(condition)`` communications, with ``p = 1 / sqrt(condition)`` and
    ``learning-rate = 1 / L``. The gradients per round are a mean; with ``absent = "drop"`` the server keeps only ``w``.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; 1/p gradients per round.

    Choices: a round ends with a communication, so its number of steps is geometric; all clients draw the
    same number, from the seed and the round. The paper's prox step averages ``v_i - (learning-rate / p) h_i``,
    which is ``v_i`` in the mean as long as ``sum_i alpha_i h_i = 0``; clients send exactly that, one vector
    from which both ``w`` and ``h_i`` follow. The paper's clients count the same (``weighting = "uniform"``)
    and all take part. By default they are weighed by samples, which is the paper's method in the inner
    product ``sum_i alpha_i <x_i, y_i>``; and a client that is not in the round counts with what it sent last
    (``absent = "keep"``), without which the optimum would not be a fixed point.

    Where a schedule changes the learning rate, ``z_i`` counts ``alpha_i`` times the ``p / learning-rate`` of the
    round that made it: that keeps ``sum_i alpha_i h_i = 0``.

    Server state: ``params`` ``w``; with ``absent = "keep"`` also every client's last ``z_i`` ``(N, P)``, its
    ``stiffness`` ``s_i = p / learning-rate`` ``(N,)`` and ``num-examples`` ``n_i`` ``(N,)``, 0 for a client not seen
    yet; and after a round in which somebody was absent ``sum`` ``sum_i n_i s_i z_i`` ``(P,)``: a round costs nothing
    for the clients that are not in it.

    Parameters
    ----------
    local_update
        SGD along ``g - h_i``.
    absent
        What a client that is not in the round counts for: ``"keep"`` its last ``z_i``, ``"drop"`` nothing.

    References
    ----------
    Mishchenko, Malinovsky, Stich, Richtarik, ProxSkip: Yes! Local Gradient Steps Provably Lead to
    Communication Acceleration! Finally!, ICML 2022, arXiv 2202.09357.

    Examples
    --------
    Of two clients with 1 and 3 samples both reply, then only the first:

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
        """Average ``z_i`` over the clients seen so far, or over the round's alone."""
        if self.absent == "drop":
            return {"params": weighted_mean(self.weights(cohort), uploads_S["z"])}
        stiffness_S = torch.full_like(cohort.num_examples_S, self.local_update.stiffness)
        z_SP = uploads_S["z"]
        sum_P, memory = sum_over_clients(server, z_SP, stiffness_S, "stiffness", self.weighting, cohort)
        total = client_mass(memory["num-examples"], self.weighting) @ memory["stiffness"]
        return {"params": (sum_P / total).to(z_SP.dtype), **memory}
