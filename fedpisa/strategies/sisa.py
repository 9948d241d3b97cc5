"""SISA: PISA with a second-moment preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from fedpisa.clients.pisa import PisaUpdate
from fedpisa.clients.preconditioners import Adam
from fedpisa.strategies.admm import ConsensusADMM


@final
@dataclass(frozen=True)
class Sisa(ConsensusADMM):
    r"""PISA preconditioned by the root of a second moment (Algorithm 2), Scheme III by default.

    ``Q = sqrt(n_i / (1 - beta^t)) + eps``, ``n_i = beta n_i + (1 - beta) (pi_i + g)^2``: an adaptive step per
    coordinate, with the consensus of PISA.

    Costs: 1 vector up, 1 down, 2 in the client, N + 1 on the server; K gradients per round.

    Notes
    -----
    For neural networks, where one step size does not suit all layers. The second moment is that of
    ``pi_i + g``, which goes to zero at a solution, so that ``Q`` may: keep ``sigma`` large enough to be stable
    alone.

    References
    ----------
    Zhou, Wang, Luo, Zhu, Li, Preconditioned Inexact Stochastic ADMM for Deep Models, arXiv 2502.10784.

    Examples
    --------
    >>> Sisa().local_update.preconditioner.beta
    0.999
    """

    local_update: PisaUpdate = PisaUpdate(preconditioner=Adam(), rho=100.0)
