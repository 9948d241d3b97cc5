"""The reference in which each client trains alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.own_model import OwnModelUpdate
from fedpisa.strategies.averaging import LocalTraining
from fedpisa.strategies.base import ClientStates, Cohort, Objective, Reference


@final
@dataclass(frozen=True)
class Local(LocalTraining):
    r"""Train one model for each client on its own samples, and never average them: a reference for the others.

    All models start at the same initial model. The test loss and accuracy are the means over the clients' models on the
    common test set, weighted by their samples; ``test_accuracy_deviation`` is the standard deviation over the clients.
    With ``fraction-train`` below 1, a client trains in its rounds only. ``model.safetensors`` has the initial model,
    because there is no global one.

    Costs: 0 vectors up, 1 down, 1 in the client, 1 on the server; K gradients per round.

    Parameters
    ----------
    local_update
        SGD on the client's model.

    Notes
    -----
    What a client reaches alone, so what federation wins for it. Reports and plots show it as a dashed line, without a
    rank or a test. It sends the initial model down, which it would not need to do.

    Examples
    --------
    >>> Local.reference
    'local'
    """

    reference: ClassVar[Reference] = "local"

    local_update: OwnModelUpdate = OwnModelUpdate()

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Keep the initial model."""
        return server

    def exact_diagnostics(
        self, server: Arrays, states: ClientStates, objective: Objective, weights_N: Tensor
    ) -> dict[str, float]:
        """Return nothing, because there is no global model."""
        return {}
