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

    ``g_b`` are the gradients of ``F_i`` over the step's mini-batches, ``batches-per-round`` of them. ``h`` starts
    at 0, and there is no correction for that. Unlike a Hessian, ``Q`` grows with the square of the loss: where
    the loss is multiplied by c, ``sigma`` is to be multiplied and ``rho`` to be divided by it.

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
        """Take every mini-batch's own gradient."""
        loss, gradients_CP = gradient.each(v_P, batch)
        count = batch.num_batches
        there_C = (batch.weight_CB.sum(-1) > 0).to(v_P.dtype)
        squares_P = there_C @ (gradients_CP + mu * v_P).square()
        return Derivatives(loss, gradients_CP.sum(0) / count, squares_P / count)
