"""FedGiA: gradient steps for some clients, inexact ADMM for the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.fedgia import FedGiAUpdate
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class FedGiA(ConsensusADMM):
    r"""One gradient per round and client; some clients turn it into K inexact ADMM steps, the others into one step.

    Client, ``g = grad F_i(w)``: either K times ``w_i = w - (g + pi_i) / (proximity + sigma)``,
    ``pi_i <- pi_i + sigma (w_i - w)``, or once ``w_i = w``, ``pi_i = -g``; see `FedGiAUpdate`. Server (2.9):
    ``w = sum_i alpha_i (w_i + pi_i / sigma)``.

    The paper's K iterations between two communications are one round here, and its ``f_i / m`` with
    penalty ``sigma`` is ``alpha_i F_i`` with ``alpha_i sigma``. Its ``H_i`` is ``proximity I``, one for all. It draws
    how many clients take ADMM steps; here each does with probability ``admm-share``, for itself.

    Every client communicates in every round of the paper, whichever steps it takes. With fewer, ``absent``
    says what the others count for: their last ``z_i``, or nothing.

    With ``p = pi_i + g``, ``q = proximity / (proximity + sigma)``, a client that takes ADMM steps sends
    ``z_i = w - g / sigma + q^(K-1) (proximity - sigma) / (sigma (proximity + sigma)) p``: with K large, or
    ``proximity = sigma``, all send ``w - g / sigma``, and the round is a gradient step. So ``sigma`` must exceed half
    of the curvature.

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
