"""FedGiA: gradient steps for some clients, inexact ADMM for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.fedgia import FedGiAUpdate
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class FedGiA(ConsensusADMM):
    r"""One gradient per client and round, used for K inexact ADMM steps by some clients and for one step by others.

    Client, ``g = grad F_i(w)``: either K times ``w_i = w - (g + pi_i) / (proximity + sigma)``,
    ``pi_i <- pi_i + sigma (w_i - w)``, or once ``w_i = w``, ``pi_i = -g``; see `FedGiAUpdate`. Server (2.9):
    ``w = sum_i alpha_i (w_i + pi_i / sigma)``.

    The paper's K iterations between two communications are one round here. Its ``f_i / m`` with penalty ``sigma`` is
    ``alpha_i F_i`` with penalty ``alpha_i sigma``, and its ``H_i`` is ``proximity I`` for all clients. The paper
    draws a set of clients that take ADMM steps; here each client draws independently with probability ``admm-share``.

    In the paper all clients communicate in each round. With partial participation, ``absent`` selects the
    contribution of absent clients: their last ``z_i``, or none.

    With ``p = pi_i + g``, ``q = proximity / (proximity + sigma)``, a client that takes ADMM steps uploads
    ``z_i = w - g / sigma + q^(K-1) (proximity - sigma) / (sigma (proximity + sigma)) p``. With large K, or
    ``proximity = sigma``, all clients upload ``w - g / sigma``, and the round is a gradient step. So ``sigma`` must
    exceed half of the curvature.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; 1 gradient per round.

    References
    ----------
    Zhou, Li, FedGiA: An Efficient Hybrid Algorithm for Federated Learning, IEEE Transactions on Signal
    Processing, 2023, arXiv 2205.01438.

    Examples
    --------
    >>> FedGiA(FedGiAUpdate(mu=0.5), lambda_=0.5).regularization
    1.0
    """

    local_update: FedGiAUpdate = FedGiAUpdate()
