"""FedPD: a primal-dual method with rounds that do not communicate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.fedpd import FedPDUpdate
from fedpisa.strategies.admm import ConsensusADMM
from fedpisa.strategies.base import Algorithm, ClientStates, Cohort, Objective


@final
@dataclass(frozen=True)
class FedPD(ConsensusADMM):
    r"""Average ``z_i = w_i + pi_i / sigma`` with probability ``1 - skip-probability``.

    Client: SGD on ``f_i(v) + <pi_i, v - c> + sigma/2 ||v - c||^2``, ``pi_i <- pi_i + sigma (w_i - c)``,
    ``c <- w_i + pi_i / sigma``; see `FedPDUpdate`. Server, in a round that communicates: ``w <- sum_i alpha_i z_i``,
    (2.9) of PISA, the clients' new ``c``. The paper's ``eta`` is ``1 / sigma``.

    Without skipped rounds it is exact. With skipped rounds it is exact only for similar clients, as the paper assumes,
    because a client then takes proximal steps towards the minimum of its local loss.

    In the paper all clients take part in each round. Here the server keeps the last ``z_i`` of an absent client; see
    ``absent``. When it returns, it continues from the newest ``w``, or from its own ``c`` if it has not sent that
    yet. SGD starts at ``c``, in the paper at the client's last model.

    In a skipped round there are no uploads and the global model does not change. The message that starts the round
    carries the model nevertheless, and is counted as sent. With skipped rounds a client keeps one more vector, and
    uploads ``1 - skip-probability`` vectors on average.

    Costs: 1 vector up, 1 down, 1 in the client, N + 1 on the server; K gradients per round.

    References
    ----------
    Zhang, Hong, Dhople, Yin, Liu, FedPD: A Federated Learning Framework with Adaptivity to Non-IID Data,
    IEEE Transactions on Signal Processing, 2021.

    Examples
    --------
    >>> FedPD(FedPDUpdate(skip_probability=1.0))
    Traceback (most recent call last):
    ValueError: skip-probability = 1.0 never communicates: give a value below 1
    """

    local_update: FedPDUpdate = FedPDUpdate()

    def __post_init__(self) -> None:
        if self.local_update.skip_probability == 1:
            raise ValueError("skip-probability = 1.0 never communicates: give a value below 1")

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Solve (2.9), or return the state of a skipped round unchanged."""
        return super().step(server, uploads_S, cohort) if "z" in uploads_S else server

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return those of `ConsensusADMM`, or those of `Algorithm` if rounds may be skipped."""
        if self.local_update.skip_probability:
            return Algorithm.exact_diagnostics(self, server, states, objective, weights_N)
        return super().exact_diagnostics(server, states, objective, weights_N)
