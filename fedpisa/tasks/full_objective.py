"""Exact diagnostics: losses and gradients on all samples of the clients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.datasets.client_data import ClientData
from fedpisa.tasks.base import Task


@final
@dataclass(frozen=True)
class FullObjective:
    """The clients' mean losses ``f_i`` on all their samples, in evaluation mode.

    Parameters
    ----------
    task
        Module and loss.
    data
        All clients' samples.
    buffers_Q
        The module's buffers.
    batch_size
        Samples per pass; bounds the memory and changes the results only by rounding.
    """

    task: Task
    data: ClientData
    buffers_Q: Tensor
    batch_size: int = 8192

    def client_loss(self, client_id: int, params_P: Tensor) -> float:
        """Return ``f_i``."""
        x, y = self.data.client(client_id)
        return self.task.evaluate(params_P, self.buffers_Q, x, y)["loss"]

    @torch.enable_grad()
    def value_and_gradient(self, params_P: Tensor, weights_N: Tensor) -> tuple[float, Tensor]:
        """Return ``sum_i weights_i f_i`` and its gradient ``(P,)``."""
        sizes_N = torch.from_numpy(self.data.sizes_N).to(weights_N.device)
        weight_n = torch.repeat_interleave(weights_N / sizes_N, sizes_N).to(params_P)
        value, gradient_P = 0.0, torch.zeros_like(params_P)
        size = self.data.bounded(self.batch_size)
        batches, weights = self.data.batches(size), torch.split(weight_n, size)
        for (x_B, y_B), weight_B in zip(batches, weights, strict=True):
            with self.task.holding(params_P, self.buffers_Q) as held:
                losses_B = self.task.sample_scores(x_B, y_B)["loss"]
                loss = losses_B @ weight_B
                gradient_P += held.gradient(loss)
            value += float(loss.detach())
        return value, gradient_P
