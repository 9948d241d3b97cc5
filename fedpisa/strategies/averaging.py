"""What the relatives of FedAvg share on the server.

Shapes: ``N`` clients, ``S`` of them in the round's cohort, ``P`` parameters.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.sgd import SGDSteps
from fedpisa.layout import ParamLayout
from fedpisa.strategies.base import Algorithm, Cohort, weighted_mean

Weighting = Literal["num-examples", "uniform"]
"""By what clients are weighed: their samples, or each the same."""


@dataclass(frozen=True)
class LocalTraining(Algorithm, ABC):
    """Clients take SGD steps from the global model; the server's state is that model, to begin with.

    Parameters
    ----------
    local_update
        The clients' SGD.
    """

    local_update: SGDSteps

    @property
    def regularization(self) -> float:
        """Return the local ``weight-decay``: where there is no bias it is the objective's."""
        return self.local_update.weight_decay

    def init(self, params_P: Tensor, layout: ParamLayout) -> Arrays:
        """Start at the initial model."""
        return {"params": params_P}


@dataclass(frozen=True)
class ModelAveraging(LocalTraining, ABC):
    """The uploads are models, and the next global model is their mean: ``w <- sum_{i in S} alpha_i v_i``."""

    def step(self, server: Arrays, uploads_S: Arrays, cohort: Cohort) -> Arrays:
        """Average the models."""
        return {"params": weighted_mean(self.weights(cohort), uploads_S["params"])}


def shares(num_examples_N: Tensor, weighting: Weighting) -> Tensor:
    """Return clients' weights ``alpha`` ``(N,)``: `counts`, normalised.

    Examples
    --------
    >>> shares(torch.tensor([5.0, 0.0, 15.0]), "num-examples")
    tensor([0.2500, 0.0000, 0.7500])
    """
    counts_N = counts(num_examples_N, weighting)
    return counts_N / counts_N.sum()


def counts(num_examples_N: Tensor, weighting: Weighting) -> Tensor:
    """Return what clients count ``(N,)``: ``n_i`` or 1, and 0 for one that was never seen (``n_i = 0``).

    Examples
    --------
    >>> counts(torch.tensor([5.0, 0.0, 2.0]), "uniform")
    tensor([1., 0., 1.])
    """
    if weighting == "num-examples":
        return num_examples_N
    return (num_examples_N > 0).to(num_examples_N.dtype)


def remember(server: Arrays, rows_S: Mapping[str, Tensor], cohort: Cohort) -> Arrays:
    """Return the server's memory of all clients, first axis ``N``, with the cohort's rows written into it.

    A client that was not seen yet has zeros; the memory grows when clients join.

    Examples
    --------
    >>> layout = ParamLayout((), (), ())
    >>> cohort = Cohort(torch.tensor([2]), torch.tensor([7.0]), 1, 3, layout)
    >>> remember({}, {"num-examples": cohort.num_examples_S}, cohort)
    {'num-examples': tensor([0., 0., 7.])}
    """
    memory = {}
    for name, row_S in rows_S.items():
        stack = server.get(name, row_S[:0])
        missing = stack.new_zeros(cohort.num_clients - len(stack), *stack.shape[1:])
        stack = torch.cat([stack, missing]) if len(missing) else stack
        memory[name] = stack.index_copy_(0, cohort.ids_S, row_S)
    return memory
