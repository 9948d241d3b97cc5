"""PISA: preconditioned inexact stochastic ADMM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.strategies.pisa_consensus import PisaConsensus


@final
@dataclass(frozen=True)
class Pisa(PisaConsensus):
    r"""Inexact stochastic ADMM (Algorithm 1), plain by default: ``Q = I``.

    The server solves (2.9), the clients (2.10)-(2.14); see `PisaConsensus` and `PisaUpdate`. It converges to the
    optimum on heterogeneous data, and each client uploads one vector per round, as in FedAvg.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    A good first choice for heterogeneous clients: it needs no decaying step size to reach the optimum. ``sigma`` keeps
    the clients' models together. If it is well above the curvature of their losses, ``rho`` can be small. The server
    keeps the last reply of each client. With ``absent = "drop"`` it keeps 1 vector, and absent clients do not count.
    With ``absent = "fresh"`` it keeps 2 vectors, and absent clients count with their duals alone. For a first run,
    ``sigma = "auto"`` and ``rho = "auto"`` choose both numbers from the losses' curvature; see `PisaConsensus`. The
    preconditioners ``fisher``, ``hutchinson`` and ``newton-schulz`` cost more memory and time.

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
