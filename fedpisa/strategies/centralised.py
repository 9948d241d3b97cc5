"""The reference that trains one model on all samples in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from fedpisa.clients.sgd import LocalSGDUpdate
from fedpisa.strategies.averaging import ModelAveraging
from fedpisa.strategies.base import Reference


@final
@dataclass(frozen=True)
class Centralised(ModelAveraging):
    r"""Train one model on the samples of all clients, as if one client had them: a reference for the others.

    It is ``fedavg`` with one client, and so plain SGD. A round is ``local-epochs`` passes over all samples, or
    ``local-steps`` mini-batches. The momentum buffer starts at zero in every round, as on a client of ``fedavg``.
    ``fraction-train`` has no effect.

    Costs: 1 vector up, 1 down, 0 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        SGD on all samples.

    Notes
    -----
    What the model reaches without federation. Reports and plots show it as a dashed line, without a rank or a test.

    Examples
    --------
    >>> Centralised.reference
    'centralised'
    """

    reference: ClassVar[Reference] = "centralised"

    local_update: LocalSGDUpdate = LocalSGDUpdate()
