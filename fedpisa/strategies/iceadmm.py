"""ICEADMM: inexact communication-efficient ADMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.iadmm import ICEADMMUpdate
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class ICEADMM(ConsensusADMM):
    r"""Local primal and dual steps at a fixed global model.

    Client, K times: ``w_i <- w_i - (g + pi_i + sigma (w_i - w)) / (proximity + sigma)`` with ``g`` the gradient at
    ``w_i``, then ``pi_i <- pi_i + sigma (w_i - w)``; see `ICEADMMUpdate`. Server (2.9):
    ``w = sum_i alpha_i (w_i + pi_i / sigma)``.

    In the paper each client has a weight, a penalty ``sigma_i`` and a proximal weight ``r_i``. Here
    ``sigma_i = alpha_i sigma`` and ``r_i = alpha_i proximity``, so the weight cancels in the client. The server needs
    only ``sigma_i w_i + pi_i``, so a client uploads one vector instead of two. Many dual steps at a fixed ``w`` end
    at ``w_i = w``, ``pi_i = -grad F_i(w)``. The round is then a gradient step of length ``1 / sigma``, so ``sigma``
    must exceed half of the curvature. As in the paper, gradients are full by default, because the dual collects the
    noise of each step.

    In the paper all clients take part; ``absent`` selects the contribution of clients that do not.

    Costs: 1 vector up, 1 down, 2 in the client, N + 1 on the server; K gradients per round.

    References
    ----------
    Zhou, Li, Communication-Efficient ADMM-based Federated Learning, arXiv 2110.15318.

    Examples
    --------
    >>> ICEADMM(ICEADMMUpdate(mu=0.5), lambda_=0.5).regularization
    1.0
    """

    local_update: ICEADMMUpdate = ICEADMMUpdate()
