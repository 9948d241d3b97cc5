"""NSISA: PISA along orthogonalised momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import NewtonSchulz
from fedpisa.strategies.pisa_consensus import PisaConsensus


@final
@dataclass(frozen=True)
class Nsisa(PisaConsensus):
    r"""PISA along momentum that is orthogonalised by five Newton-Schulz steps, for models made of matrices.

    ``w_i = w - d / (sigma + rho (|d| + eps))``, ``d = NS5(h) sqrt(max(1, rows/cols)) + pi_i + mu w``,
    with ``h`` the Nesterov look-ahead of a momentum of the client's gradients; see `NewtonSchulz`. The server and the
    duals are those of PISA.

    Costs: 1 vector up, 1 down, 3 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    For deep networks with large matrices and similar clients. Steps do not depend on the length of a client's gradient,
    so with heterogeneous clients the fixed point is not the optimum (for matrices of one row it is
    ``sum_i alpha_i g_i / ||g_i|| = 0``). The five steps take at most ``15 min(rows, cols) rows cols`` multiplications
    per matrix, for any mini-batch size.

    The authors' public code multiplies the whole dual by ``alpha_i`` in every step. That is not (2.14), which is
    what runs here.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784, and its
    public code, which trains language models with ``sigma`` 80, ``rho`` 100, ``momentum`` 0.95.

    Examples
    --------
    >>> Nsisa().local_update.preconditioner.momentum
    0.95
    """

    local_update: PisaUpdate = PisaUpdate(preconditioner=NewtonSchulz(), sigma=8.0, rho=100.0)
