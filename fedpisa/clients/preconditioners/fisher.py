"""Second-order information from the gradients of mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from fedpisa.clients.base import Gradient, MiniBatches
from fedpisa.clients.preconditioners.base import CurvatureAverage, Derivatives


@final
@dataclass(frozen=True)
class Fisher(CurvatureAverage):
    r"""Diagonal of the empirical Fisher matrix: ``h = beta h + (1 - beta) mean_b g_b g_b``, ``Q = min(h, eta)``.

    ``g_b`` are the gradients of ``F_i`` on the step's ``batches-per-round`` mini-batches. Unlike a Hessian, ``Q``
    grows with the square of the loss: if the loss is multiplied by c, multiply ``sigma`` by c and divide ``rho`` by
    c.

    Examples
    --------
    >>> import torch
    >>> fisher = Fisher(beta=0.75)
    >>> g = torch.tensor([2.0])
    >>> fisher(g, Derivatives(torch.zeros(()), g, curvature_P=g * g), fisher.init(g))[0]
    tensor([1.])
    """

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Return the mean of the mini-batches' squared gradients beside loss and gradient."""
        loss, gradients_CP = gradient.each(v_P, batch)
        count = batch.num_batches
        nonempty_C = (batch.weight_CB.sum(-1) > 0).to(v_P.dtype)
        squares_P = nonempty_C @ (gradients_CP + mu * v_P).square()
        return Derivatives(loss, gradients_CP.sum(0) / count, squares_P / count)
