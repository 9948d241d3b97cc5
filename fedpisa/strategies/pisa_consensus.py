"""The server of PISA and its preconditioned variants, with three choices for absent clients.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass, fields
from typing import Literal

from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.pisa import IncrementalPisaUpdate, PisaUpdate
from fedpisa.strategies.admm import ConsensusADMM
from fedpisa.strategies.base import Cohort, client_mass, updated_mean, weighted_mean


@dataclass(frozen=True)
class PisaConsensus(ConsensusADMM, ABC):
    r"""`ConsensusADMM` that can also take the local models from the round's replies alone.

    With ``absent = "keep"`` or ``"drop"`` it is `ConsensusADMM`. With ``absent = "fresh"``, the primal part of (2.9) is
    the mean over the cohort ``S``, and the dual part is the mean over all clients:

    ``Pi <- Pi + sigma sum_{i in S} alpha_i (w_i - w)``, ``w <- (sigma sum_{i in S} a_i w_i + Pi) / (sigma + lambda)``,

    with ``alpha_i`` the weights over all clients, ``a_i`` those over the cohort and ``sigma`` the round's penalty.
    Clients compute the same ``w_i`` and ``pi_i`` as otherwise. They upload ``w_i - w`` (`IncrementalPisaUpdate`), and
    ``Pi = sum_i alpha_i pi_i`` follows from (2.14), because an absent client's dual stays. With full participation
    this is (2.9).

    Fixed point: if no client of any cohort moves, ``w_i = w``, then ``Pi`` stays and ``w = (sigma w + Pi) /
    (sigma + lambda)``, so ``Pi = lambda w``. A client with an exact preconditioner stays only if
    ``pi_i = -grad F_i(w)``, for any number of local steps. Both give ``sum_i alpha_i grad F_i(w) + lambda w = 0``: the
    optimum, whatever the cohorts. There, all cohorts leave ``w`` and the duals as they are. For quadratic losses and
    constant ``sigma`` and ``Q``, a round is a linear map of ``(w, pi_1, ..., pi_N)``, so convergence is linear.

    Penalties that change: ``sigma`` cancels in ``Pi = lambda w``. Duals are gradients and need no new scale when
    ``gamma`` or a schedule changes ``sigma``; all terms of a round have the round's ``sigma``.

    Weights: ``alpha_i = n_i / sum_j n_j`` needs the sizes of all clients. A client that was not seen yet has
    ``pi_i = 0`` and counts with the mean size of the others, as in `FedDyn`. The server keeps ``Pi`` times this total,
    so once all clients have been seen, ``Pi`` has the right weights.

    Lost replies: an upload is an increment. If its reply is lost, the client takes back its dual and its
    preconditioner's memory; see `LocalUpdate.incremental`. A client that loses its state lets all clients begin anew.

    Server state with ``absent = "fresh"``: ``params`` ``w``; ``dual`` ``Pi`` ``(P,)``; ``num-examples`` ``(N,)``, 0
    for a client not seen yet.

    Parameters
    ----------
    absent
        Contribution of clients that are not in the round: ``"keep"`` their last ``z_i``, ``"drop"`` them, or
        ``"fresh"``: their duals, but not their last local models, which may be old. ``"fresh"`` keeps 2 vectors on
        the server instead of N + 1. Its uploads are increments, so each client also keeps its state from before its
        last round. With full participation all give the same model, ``"keep"`` and ``"drop"`` bit for bit.

    Examples
    --------
    Clients 0 and 1 of 1 and 3 samples, ``sigma = 1``. From ``w = 0`` they move to 4 and 8, so ``Pi = 7`` and
    ``w = 7 + 7``. Then client 0 alone moves from 14 to 10: ``Pi = 7 - 4/4``, ``w = 10 + 6``.

    >>> import torch
    >>> from fedpisa.strategies.pisa import Pisa
    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(1))])
    >>> algorithm = Pisa(PisaUpdate(sigma=1.0), absent="fresh")
    >>> both = Cohort(torch.arange(2), torch.tensor([1.0, 3.0]), 1, 2, layout)
    >>> server = algorithm.step({"params": torch.zeros(1)}, {"drift": torch.tensor([[4.0], [8.0]])}, both)
    >>> first = Cohort(torch.tensor([0]), torch.tensor([1.0]), 2, 2, layout)
    >>> server["params"], algorithm.step(server, {"drift": torch.tensor([[-4.0]])}, first)["params"]
    (tensor([14.]), tensor([16.]))
    """

    local_update: PisaUpdate = PisaUpdate()
    absent: Literal["keep", "drop", "fresh"] = "keep"  # type: ignore[assignment]  # one choice more

    def __post_init__(self) -> None:
        if isinstance(self.local_update, IncrementalPisaUpdate) != (self.absent == "fresh"):
            update = IncrementalPisaUpdate if self.absent == "fresh" else PisaUpdate
            values = {item.name: getattr(self.local_update, item.name) for item in fields(PisaUpdate)}
            object.__setattr__(self, "local_update", update(**values))

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Solve (2.9) over the clients seen so far, over the cohort, or over its models and all duals."""
        if self.absent != "fresh":
            return super().step(server, uploads_S, cohort)
        drift_SP, sigma = uploads_S["drift"], self.local_update.sigma_at(cohort.server_round)
        mass_S = client_mass(cohort.num_examples_S, self.weighting)
        change_P = sigma * weighted_mean(mass_S, drift_SP)
        mean = updated_mean(server, "dual", change_P, self.weighting, cohort)
        local_P = server["params"] + weighted_mean(self.weights(cohort), drift_SP)
        return {"params": (sigma * local_P + mean["dual"]) / (sigma + self.lambda_), **mean}

    def forget(self, server: Arrays, ids_S: Tensor) -> Arrays:
        """Return the state without the ``z_i`` of some clients; the sum of the duals holds no client's own."""
        return server if self.absent == "fresh" else super().forget(server, ids_S)
