"""FedPD: primal-dual, with rounds that do not communicate."""

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
    r"""Average ``z_i = w_i + pi_i / sigma`` with probability ``1 - skip-probability``, or let everyone go on alone.

    Client: SGD on ``f_i(v) + <pi_i, v - c> + sigma/2 ||v - c||^2``, ``pi_i <- pi_i + sigma (w_i - c)``,
    ``c <- w_i + pi_i / sigma``; see `FedPDUpdate`. Server, in a round that communicates: ``w <- sum_i alpha_i z_i``,
    (2.9) of PISA, which everyone takes as its new ``c``. The paper's ``eta`` is ``1 / sigma``.

    Without skipping it is exact. With skipping it is not, unless the clients' losses are alike, which the
    paper assumes for that case: alone, a client takes proximal steps towards its own minimum.

    The paper visits every client in every round. Of one that is absent the server keeps the last ``z_i``, see
    ``absent``; it takes up the newest ``w``, or the ``c`` that it has not sent yet. SGD begins at ``c`` (the
    paper: at the client's last model).

    In a skipped round nothing goes up and the global model stays what it was. The message that starts a
    round carries that model all the same, and it is counted as sent. With skipping a client keeps one more
    vector, and sends ``1 - skip-probability`` vectors on average.

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
        """Solve (2.9), unless no client sent anything."""
        return super().step(server, uploads_S, cohort) if "z" in uploads_S else server

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return those of `ConsensusADMM`; with skipping, where clients are ahead of the server, `Algorithm`'s."""
        if self.local_update.skip_probability:
            return Algorithm.exact_diagnostics(self, server, states, objective, weights_N)
        return super().exact_diagnostics(server, states, objective, weights_N)
