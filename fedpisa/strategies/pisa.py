"""PISA: preconditioned inexact stochastic ADMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class Pisa(ConsensusADMM):
    r"""Inexact stochastic ADMM (Algorithm 1), plain by default: ``Q = I``.

    Server (2.9) and clients (2.10)-(2.14); see `ConsensusADMM` and `PisaUpdate`. It converges to the
    optimum on heterogeneous data, and one vector per client and round goes up, as in FedAvg.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    The one to start with where clients differ: it needs neither a decaying step nor equal clients to reach the
    optimum. ``sigma`` holds the clients together; where it is well above the curvature of their losses, ``rho``
    can be small. The server remembers every client's last reply; with ``absent = "drop"`` it is 1 vector, at
    the price of forgetting who is not in the round. The rules ``fisher``, ``hutchinson`` and ``newton-schulz``
    need more: see the preconditioners.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784.

    Examples
    --------
    >>> from fedpisa.clients.preconditioners import Adagrad
    >>> Pisa(PisaUpdate(Adagrad(), sigma=0.5), lambda_=1e-3).regularization
    0.001
    """

    local_update: PisaUpdate = PisaUpdate()
