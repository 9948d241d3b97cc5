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
