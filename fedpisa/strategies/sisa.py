"""SISA: PISA with a second-moment preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adam
from fedpisa.strategies.pisa_consensus import PisaConsensus


@final
@dataclass(frozen=True)
class Sisa(PisaConsensus):
    r"""PISA preconditioned by the square root of a second moment (Algorithm 2), by default Scheme III.

    ``Q = sqrt(n_i / (1 - beta^t)) + eps``, ``n_i = beta n_i + (1 - beta) (pi_i + g)^2``. Each
    coordinate has an adaptive step size; the server is that of PISA.

    Costs: 1 vector up, 1 down, 2 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    For neural networks whose layers need different step sizes. ``pi_i + g`` goes to zero at a solution, and ``Q`` with
    it. SISA then leaves the solution again, unless ``sigma`` is above 3/2 of the curvature or ``amsgrad = true`` keeps
    ``Q``.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784.

    Examples
    --------
    >>> Sisa().local_update.preconditioner.beta
    0.999
    """

    local_update: PisaUpdate = PisaUpdate(preconditioner=Adam(), rho=100.0)
