"""ICEADMM: inexact communication-efficient ADMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.iadmm import ICEADMMUpdate
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class ICEADMM(ConsensusADMM):
    r"""Primal and dual steps at a fixed global model between two rounds.

    Client, K times: ``w_i <- w_i - (g + pi_i + sigma (w_i - w)) / (proximity + sigma)`` with ``g`` the gradient at
    ``w_i``, then ``pi_i <- pi_i + sigma (w_i - w)``; see `ICEADMMUpdate`. Server (2.9):
    ``w = sum_i alpha_i (w_i + pi_i / sigma)``.

    The paper weighs ``f_i`` and takes penalties ``sigma_i`` and proximal terms ``r_i`` of each client; here
    ``sigma_i = alpha_i sigma`` and ``r_i = proximity`` (times ``alpha_i``): the weight cancels in the client. The
    server needs ``sigma_i w_i + pi_i`` alone, so one vector goes up, not two. Many dual steps at a fixed ``w``
    end at ``w_i = w``, ``pi_i = -grad F_i(w)``, and the round is then a gradient step of length ``1 / sigma``:
    ``sigma`` must exceed half of the curvature. Its gradients are full ones, as they are here by default: each
    step's noise goes into the dual.

    The paper visits every client; ``absent`` says what one that is not sampled counts for.

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
