"""Spectral PISA: PISA preconditioned by singular values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Spectral
from fedpisa.strategies.pisa_consensus import PisaConsensus


@final
@dataclass(frozen=True)
class SpectralPisa(PisaConsensus):
    r"""PISA with ``Q = (q q')^{1/2}``, ``q = pi_i + g``, for models made of matrices.

    With ``q = U diag(s) V'``, a client's step is ``-U diag(s / (sigma + rho s)) V'``: Muon's direction ``U V'`` of
    length ``1 / rho`` where ``s`` is well above ``sigma / rho``, and plain PISA's ``q / sigma`` near a solution. See
    `Spectral`; the server and the duals are those of PISA.

    The step is zero only at ``q = 0``. So a fixed point has ``w_i = w``, ``pi_i = -grad F_i(w)`` and
    ``sum_i alpha_i pi_i = lambda w``: it is the optimum for any clients. Near it ``Q`` goes to zero, and PISA converges
    there if it does so with ``rho = 0``: choose ``sigma`` well above the curvature of the clients' losses.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    For networks with one local step per round, and heterogeneous clients. Unlike `nsisa` it keeps no memory in the
    client and reaches the optimum. A small ``sigma / rho`` learns faster, and below some value training fails; a
    ``sigma`` that grows (``gamma``) helps there. `fedsgd` with Adam is far ahead on deeper networks, and `pisa` and
    `sisa` are ahead on a language model of characters. An eigenvalue decomposition takes about as long as 7 to 44
    products of ``k x k`` matrices, ``k = min(rows, columns)``, for each parameter, client and step.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784, for PISA and
    (2.11). The choice of ``Q`` is not in the paper.

    Examples
    --------
    >>> SpectralPisa().local_update.preconditioner.momentum
    0.0
    """

    local_update: PisaUpdate = PisaUpdate(preconditioner=Spectral(), sigma=1.0, rho=3.0)
