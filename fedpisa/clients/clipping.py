"""Stochastic gradients of bounded norm.

Shapes: ``P`` parameters, ``C`` mini-batches of a local step, ``R`` vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Gradient, MiniBatches
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.players import Player


@final
@dataclass(frozen=True)
class ClippedGradient:
    """A `Gradient` whose mean ``g`` over a step's mini-batches becomes ``g min(1, c / ||g||)``.

    Losses do not change. Neither do products with the Hessian: they describe the loss, not the step.

    Parameters
    ----------
    gradient
        The gradient to clip.
    max_norm
        The largest norm ``c``, above 0.
    """

    gradient: Gradient
    max_norm: float

    @property
    def layout(self) -> ParamLayout:
        """Names and shapes of the parameters; see `Gradient`."""
        return self.gradient.layout

    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and the clipped gradient ``(P,)``, with ``extra`` in it; see `Gradient`."""
        loss, g_P = self.gradient(params_P, batch, extra)
        return loss, g_P * clip_factor(g_P, self.max_norm)

    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and the mini-batches' gradients ``(C, P)``, all by the factor of their mean.

        The mean of the rows is thus the clipped gradient, as in every other method.
        """
        loss, gradients_CP = self.gradient.each(params_P, batch)
        mean_P = gradients_CP.sum(0) / batch.num_batches
        return loss, gradients_CP * clip_factor(mean_P, self.max_norm)

    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss, the clipped gradient, and the loss's Hessian-vector products ``(R, P)``."""
        loss, g_P, products_RP = self.gradient.with_hessian(params_P, batch, vectors_RP)
        return loss, g_P * clip_factor(g_P, self.max_norm), products_RP

    def of(self, player: Player, params_P: Tensor) -> ClippedGradient:
        """Return the clipped gradient of a player's loss; see `Gradient`."""
        return ClippedGradient(self.gradient.of(player, params_P), self.max_norm)


def clip_factor(g_P: Tensor, max_norm: float) -> Tensor:
    """Return ``min(1, max_norm / ||g||)``, a scalar ``()``; 1 for a zero gradient.

    Examples
    --------
    >>> clip_factor(torch.tensor([3.0, 4.0]), 1.0), clip_factor(torch.zeros(2), 1.0)
    (tensor(0.2000), tensor(1.))
    """
    norm: Tensor = torch.linalg.vector_norm(g_P)
    return (max_norm / norm).clamp(max=1)


def clipped(gradient: Gradient, max_norm: float) -> Gradient:
    """Return a gradient with norm at most ``max_norm``; 0 leaves it as it is."""
    return ClippedGradient(gradient, max_norm) if max_norm else gradient
