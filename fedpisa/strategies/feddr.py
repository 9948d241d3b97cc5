"""FedDR: randomised Douglas-Rachford splitting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.feddr import FedDRUpdate
from fedpisa.strategies.primaldual import TrackedConsensus


@final
@dataclass(frozen=True)
class FedDR(TrackedConsensus):
    r"""Douglas-Rachford splitting on the sampled clients.

    Client: ``y_i <- y_i + relaxation (w - w_i)``, ``w_i ~ prox_{f_i / sigma}(y_i)``, ``z_i = 2 w_i - y_i``. It uploads
    the change of ``z_i``; see `FedDRUpdate`. Server: ``z <- z + sum_{i in S} alpha_i change_i``,
    ``w <- prox_{g / sigma}(z) = sigma z / (sigma + lambda)`` for ``g = lambda/2 ||w||^2``.

    The paper's ``eta`` is ``1 / sigma``, and its ``alpha`` is ``relaxation``. With the same ``eta`` for all clients,
    its proximal maps are those of ``sum_i alpha_i f_i`` in the product space with inner product
    ``sum_i alpha_i <.,.>``. The weights therefore change only the server's mean. With exact proximal maps and full
    participation, ``y = (y_i)`` contracts, for L-smooth, m-strongly convex ``f_i`` and ``relaxation = a``, by
    ``|1 - a/2| + (a/2) max((L - sigma)/(L + sigma), (sigma - m)/(sigma + m))`` per round. At ``sigma = sqrt(L m)``,
    ``a = 1`` this is ``sqrt(L/m) / (1 + sqrt(L/m))``. With ``relaxation = 1`` it is `FedADMM`, round by round.

    Choices: the proximal map is K steps of SGD from ``w_i + relaxation (w - w_i)``. The paper starts with a round in
    which all clients compute ``prox(w^0)``; here a client starts with ``w_i = w``, ``y_i = w`` in its first round.

    Costs: 1 vector up, 1 down, 2 in the client, 2 on the server; K gradients per round.

    References
    ----------
    Tran-Dinh, Pham, Phan, Nguyen, FedDR - Randomized Douglas-Rachford Splitting Algorithms for Nonconvex
    Federated Composite Optimization, NeurIPS 2021, arXiv 2103.03452.
    Giselsson, Boyd, Linear Convergence and Metric Selection for Douglas-Rachford Splitting and ADMM, 2017.

    Examples
    --------
    ``prox_{g / sigma}(z)`` with ``sigma = 1``, ``lambda = 1/2``:

    >>> import torch
    >>> FedDR(FedDRUpdate(sigma=1.0), lambda_=0.5).shrunk(torch.tensor([3.0]), 0)
    tensor([2.])
    """

    local_update: FedDRUpdate = FedDRUpdate()
