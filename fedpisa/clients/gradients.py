"""A client's stochastic gradient by plain autograd.

An `AutogradGradient` carries the module's buffers from one evaluation to the next and keeps the latest loss. Each
local step makes a new one, so clients and rounds do not share it.

Shapes: ``P`` parameters, ``Q`` buffer entries, ``C`` mini-batches, ``B`` samples of a mini-batch,
``R`` vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import MiniBatches
from fedpisa.tasks.features import FeatureLoss
from fedpisa.tasks.layout import ParamLayout
from fedpisa.tasks.task import Task


@final
@dataclass
class AutogradGradient:
    """The reference `Gradient`: autograd on one mini-batch after the other, without padding."""

    task: Task
    buffers_Q: Tensor
    loss: Tensor | None = None

    @property
    def layout(self) -> ParamLayout:
        """Names and shapes of the parameters; see `Gradient`."""
        return self.task.layout

    @torch.enable_grad()
    def __call__(
        self, params_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and gradient ``(P,)`` over the mini-batches; see `Gradient`."""
        point_P = params_P.detach().requires_grad_()
        total_P, total = torch.zeros_like(params_P), params_P.new_zeros(())
        for _, loss in self._losses(point_P, batch, extra):
            total_P += torch.autograd.grad(loss, point_P)[0]
            total += loss.detach()
        self.loss = total / batch.num_batches
        return self.loss, total_P / batch.num_batches

    @torch.enable_grad()
    def each(self, params_P: Tensor, batch: MiniBatches) -> tuple[Tensor, Tensor]:
        """Return the mean loss ``()`` and each mini-batch's gradient ``(C, P)``; see `Gradient`."""
        point_P = params_P.detach().requires_grad_()
        gradients_CP, total = params_P.new_zeros(len(batch.x), len(params_P)), params_P.new_zeros(())
        for c, loss in self._losses(point_P, batch):
            gradients_CP[c] = torch.autograd.grad(loss, point_P)[0]
            total += loss.detach()
        self.loss = total / batch.num_batches
        return self.loss, gradients_CP

    @torch.enable_grad()
    def with_hessian(
        self, params_P: Tensor, batch: MiniBatches, vectors_RP: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the mean loss, gradient, and Hessian-vector products ``(R, P)``; see `Gradient`."""
        point_P = params_P.detach().requires_grad_()
        total_P, total_RP = torch.zeros_like(params_P), torch.zeros_like(vectors_RP)
        total = params_P.new_zeros(())
        for _, loss in self._losses(point_P, batch):
            (gradient_P,) = torch.autograd.grad(loss, point_P, create_graph=True)
            for r, vector_P in enumerate(vectors_RP):
                # A loss that is linear in the parameters has a gradient that does not depend on them.
                if gradient_P.requires_grad:
                    total_RP[r] += torch.autograd.grad(gradient_P, point_P, vector_P, retain_graph=True)[0]
            total_P += gradient_P.detach()
            total += loss.detach()
        self.loss = total / batch.num_batches
        return self.loss, total_P / batch.num_batches, total_RP / batch.num_batches

    def _losses(
        self, point_P: Tensor, batch: MiniBatches, extra: FeatureLoss | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the index and the mean loss of each non-empty mini-batch."""
        for c, (x, y_B, weight_B) in enumerate(zip(*batch.samples, strict=True)):
            real = weight_B > 0
            if bool(real.any()):
                params = self.task.layout.unflatten(point_P)
                losses_B, buffers_Q = self.task.losses(
                    params, self.buffers_Q, x[real], y_B[real], real[real], extra
                )
                self.buffers_Q = buffers_Q.detach()
                yield c, losses_B.mean()
