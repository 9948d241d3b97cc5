"""Base classes of the FedAvg family on the server.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.sgd import SGDSteps
from fedpisa.strategies.base import Algorithm, Cohort, Weighting, shares, weighted_mean
from fedpisa.tasks.layout import ParamLayout


@dataclass(frozen=True)
class LocalTraining(Algorithm, ABC):
    """Clients take SGD steps from the global model, which is the server's first state.

    Parameters
    ----------
    local_update
        The clients' SGD.
    """

    local_update: SGDSteps

    @property
    def regularization(self) -> float:
        """Return the local ``weight-decay``, the objective's L2 coefficient if the algorithm is exact."""
        return self.local_update.weight_decay

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start at the initial model."""
        return {"params": params_P}


@dataclass(frozen=True)
class WeightedTraining(LocalTraining, ABC):
    """`LocalTraining` with a choice of the clients' weights.

    Parameters
    ----------
    weighting
        Clients' weights ``alpha_i``: proportional to ``"num-examples"``, or ``"uniform"``.
    """

    weighting: Weighting = "num-examples"

    def weights(self, cohort: Cohort) -> Tensor:
        """Return ``alpha_i`` over the cohort ``(S,)``."""
        return shares(cohort.num_examples_S, self.weighting)


@dataclass(frozen=True)
class ModelAveraging(LocalTraining, ABC):
    """The global model is the mean of the uploaded models: ``w <- sum_{i in S} alpha_i v_i``."""

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Average the models."""
        return {"params": weighted_mean(self.weights(cohort), uploads_S["params"])}
