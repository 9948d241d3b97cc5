"""Second-order information from the gradients of mini-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, MiniBatches
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.typing import Probability


@final
@dataclass(frozen=True)
class Fisher(Preconditioner):
    r"""Diagonal of the empirical Fisher matrix: ``h = beta h + (1 - beta) mean_b g_b g_b``, ``Q = min(h, eta)``.

    ``g_b`` are the gradients of ``F_i`` over the step's mini-batches, ``batches-per-round`` of them. ``h`` starts
    at 0, and there is no correction for that. Unlike a Hessian, ``Q`` grows with the square of the loss: where
    the loss is multiplied by c, ``sigma`` is to be multiplied and ``rho`` to be divided by it.

    Parameters
    ----------
    beta
        Memory of ``h``.

    Examples
    --------
    >>> fisher = Fisher(beta=0.75)
    >>> g = torch.tensor([2.0])
    >>> fisher(g, Derivatives(torch.zeros(()), g, curvature_P=g * g), fisher.init(g))[0]
    tensor([1.])
    """

    beta: Probability = 0.9

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``h = 0``."""
        return {"curvature": torch.zeros_like(params_P)}

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Take every mini-batch's own gradient."""
        loss, gradients_CP = gradient.each(v_P, batch)
        count = batch.num_batches
        there_C = (batch.weight_CB.sum(-1) > 0).to(v_P.dtype)
        squares_P = there_C @ (gradients_CP + mu * v_P).square()
        return Derivatives(loss, gradients_CP.sum(0) / count, squares_P / count)

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Average the squares."""
        assert derivatives.curvature_P is not None
        h_P = self.beta * memory["curvature"] + (1 - self.beta) * derivatives.curvature_P
        return h_P.clamp(max=self.eta), {"curvature": h_P}
