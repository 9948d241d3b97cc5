"""What a client's reply looks like, found without any data: names and shapes, no numbers.

Shapes: ``P`` parameters, ``C`` mini-batches, ``R`` vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, LocalUpdate, MiniBatches
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout


@final
@dataclass(frozen=True)
class ReplySpec:
    """Names and shapes of a reply.

    Parameters
    ----------
    upload
        Shapes of the arrays, by name.
    metrics
        Names of the scalars that the algorithm reports.
    """

    upload: Mapping[str, tuple[int, ...]]
    metrics: frozenset[str]


def reply_spec(update: LocalUpdate, server_round: int, down: Arrays, layout: ParamLayout) -> ReplySpec:
    """Return the names, shapes and metrics of a client's upload in a round.

    The update is run for one step on tensors that have a shape and no content.

    Parameters
    ----------
    update
        The algorithm's local update.
    server_round
        The round, because what is sent may depend on it.
    down
        What is broadcast.
    layout
        The module's parameters.

    Examples
    --------
    >>> from fedpisa.clients.sgd import LocalSGDUpdate
    >>> layout = ParamLayout.of([("weight", torch.zeros(3))])
    >>> reply_spec(LocalSGDUpdate(), 1, {"params": torch.zeros(3)}, layout).upload
    {'params': (3,)}
    """
    update = update.at_round(server_round)
    down = {name: value.to("meta") for name, value in down.items()}
    weight_CB = torch.ones(1, 1, dtype=down["params"].dtype, device="meta")
    batch = MiniBatches(weight_CB, weight_CB, weight_CB, torch.zeros((), dtype=torch.int64, device="meta"))
    state = update.init(down["params"])
    work = update.step(NoGradient(layout), down, state, update.start(down, state), batch)
    outcome = update.finish(down, state, work)
    shapes = {name: tuple(value.shape) for name, value in outcome.upload.items()}
    return ReplySpec(shapes, frozenset(outcome.metrics))


@final
@dataclass(frozen=True)
class NoGradient:
    """A `fedpisa.clients.base.Gradient` that is zero everywhere.

    Parameters
    ----------
    layout
        The module's parameters.
    """

    layout: ParamLayout

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), torch.zeros_like(params_P)

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), params_P.new_zeros(len(batch.x), len(params_P))

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return zeros."""
        return params_P.new_zeros(()), torch.zeros_like(params_P), torch.zeros_like(vectors_RP)
