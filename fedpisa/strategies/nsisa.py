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
    For deep networks with large matrices and similar clients. At a fixed point ``w_i = w``, so each client's direction
    is zero and the duals are ``pi_i = -NS5(g_i) sqrt(max(1, rows/cols)) - mu w``. The server has
    ``sum_i alpha_i pi_i = lambda w``. With ``lambda = mu = 0`` both give ``sum_i alpha_i NS5(g_i) = 0``. For matrices
    of one row that is ``sum_i alpha_i g_i / ||g_i|| = 0``.

    This is harmless if all clients' samples have the same distribution, because every ``g_i`` is then small near the
    optimum. It is harmless too if the model fits all samples, because then ``g_i = 0`` and ``NS5(0) = 0``. It is
    harmful if the clients differ. At the optimum the ``g_i`` then balance each other, but their ``NS5`` do not, since
    long and short gradients have the same ``NS5``. Take `spectral-pisa` there: it has about the same direction far from
    the optimum, and the optimum is its fixed point.

    The five steps take at most ``15 min(rows, cols) rows cols`` multiplications per matrix, for any mini-batch size.

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
