"""Two ways to a client's stochastic gradient: plain autograd for one client, `torch.func` for many.

Both thread the module's buffers from one evaluation to the next and keep count of the loss; a new object
is made for every local step, so nothing leaks between clients or rounds.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``C`` mini-batches, ``B`` samples of a mini-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.func import grad

from fedpisa.clients.base import MiniBatches
from fedpisa.task import Task


@final
@dataclass
class AutogradGradient:
    """The reference: one mini-batch after the other, no padding, PyTorch's own autograd."""

    task: Task
    buffers_Q: Tensor
    loss: Tensor | None = None

    def __call__(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and gradient ``(P,)`` over the mini-batches; see `Gradient`."""
        point_P = params_P.detach().requires_grad_()
        total_P, total, count = torch.zeros_like(params_P), params_P.new_zeros(()), 0
        for x, y_B, weight_B in zip(*batch, strict=True):
            real = weight_B > 0
            if not bool(real.any()):
                continue
            losses_B, buffers_Q = self.task.losses(
                self.task.layout.unflatten(point_P), self.buffers_Q, x[real], y_B[real], real[real]
            )
            self.buffers_Q = buffers_Q.detach()
            loss = losses_B.mean()
            total_P += torch.autograd.grad(loss, point_P)[0]
            total, count = total + loss.detach(), count + 1
        self.loss = total / count
        return self.loss, total_P / count


@final
@dataclass
class StackedGradient:
    """The same under `torch.func.vmap`: padded mini-batches, and all ``C`` of them in one pass.

    A module with BatchNorm sees its mini-batches one by one, because its statistics are theirs.
    """

    task: Task
    buffers_Q: Tensor
    loss: Tensor | None = None

    def __call__(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and gradient ``(P,)`` over the mini-batches; see `Gradient`."""
        if not self.task.mixes_samples or batch.weight_CB.shape[0] == 1:
            parts = [(batch.x.flatten(0, 1), batch.y_CB.flatten(0, 1), batch.weight_CB.flatten(0, 1))]
        else:
            parts = list(zip(*batch, strict=True))
        loss, gradient_P = self._weighted(params_P, *parts[0])
        for part in parts[1:]:
            more, more_P = self._weighted(params_P, *part)
            loss, gradient_P = loss + more, gradient_P + more_P
        self.loss = loss
        return loss, gradient_P

    def _weighted(self, params_P: Tensor, x: Tensor, y_B: Tensor, weight_B: Tensor) -> tuple[Tensor, Tensor]:
        real_B = (weight_B > 0).to(weight_B.dtype)

        def weighted_loss(params: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            losses_B, buffers_Q = self.task.losses(params, self.buffers_Q, x, y_B, real_B)
            # A padded row may have an infinite loss; 0 * inf would spoil the sum.
            loss = torch.where(weight_B > 0, losses_B, 0).mul(weight_B).sum()
            return loss, (loss.detach(), buffers_Q)

        gradients, (loss, buffers_Q) = grad(weighted_loss, has_aux=True)(self.task.layout.unflatten(params_P))
        # A mini-batch that is not there leaves the buffers alone.
        self.buffers_Q = torch.where(weight_B.sum() > 0, buffers_Q, self.buffers_Q)
        return loss, self.task.layout.flatten(gradients)
