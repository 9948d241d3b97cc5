"""BatchNorm that leaves padding out of its statistics.

Padding stacks clients whose mini-batches have unequal sizes. A padded row must change neither the batch statistics nor
the running statistics, so `real_rows` gives the layers a mask of the real rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeGuard, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedpisa.tasks.modules import is_unchanged

_mask_B: ContextVar[Tensor | None] = ContextVar("mask_B", default=None)


@contextmanager
def real_rows(mask_B: Tensor | None) -> Iterator[None]:
    """Set the mask ``(B,)`` of every `MaskedBatchNorm` inside: 1 for a sample, 0 for padding; ``None`` for no mask."""
    token = _mask_B.set(mask_B)
    try:
        yield
    finally:
        _mask_B.reset(token)


@final
class MaskedBatchNorm(_BatchNorm):
    r"""`torch.nn.BatchNorm{1,2,3}d` over the real rows of a padded mini-batch.

    ``mean = sum_b m_b x_b / M`` and ``var = sum_b m_b (x_b - mean)^2 / M``, where ``M`` is the number of real values
    per channel. The running variance uses the unbiased estimate, as in PyTorch. A single value per
    channel, which PyTorch refuses, is normalised to zero, and its estimate of the running variance is 0.

    A layer becomes one by `mask_batchnorms`.

    Examples
    --------
    >>> layer = mask_batchnorms(nn.BatchNorm1d(1))
    >>> x = torch.tensor([[1.0], [3.0], [99.0]])
    >>> with real_rows(torch.tensor([1.0, 1.0, 0.0])):
    ...     layer(x)[:2].detach().round(decimals=3).flatten().tolist()
    [-1.0, 1.0]
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` ``(B, C, ...)`` per channel."""
        per_channel = (1, -1) + (1,) * (x.dim() - 2)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            mean, var = self.running_mean, self.running_var
        else:
            mean, var = self._batch_statistics(x)
        y = (x - mean.view(per_channel)) * torch.rsqrt(var + self.eps).view(per_channel)
        if self.weight is not None:
            y = y * self.weight.view(per_channel)
        return y if self.bias is None else y + self.bias.view(per_channel)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask_B = _mask_B.get()
        mask_B = x.new_ones(x.shape[0]) if mask_B is None else mask_B.to(x.dtype)
        mask = mask_B.view(-1, *(1,) * (x.dim() - 1))
        over = [0, *range(2, x.dim())]
        # An empty mini-batch has statistics 0, not 0 / 0: its gradient is weighted by 0, and 0 * nan is nan.
        count = (mask_B.sum() * x[0, 0].numel()).clamp(min=1)
        mean = (x * mask).sum(over) / count
        deviation = (x - mean.view((1, -1) + (1,) * (x.dim() - 2))) * mask
        var = (deviation * deviation).sum(over) / count
        if self.training:
            self._track(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        return mean, var

    def _track(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        rate = 1 / self.num_batches_tracked.to(mean) if self.momentum is None else self.momentum
        self.running_mean.copy_((1 - rate) * self.running_mean + rate * mean)
        self.running_var.copy_((1 - rate) * self.running_var + rate * unbiased_var)


def mask_batchnorms(module: nn.Module) -> nn.Module:
    """Make every plain BatchNorm of a module a `MaskedBatchNorm`, and return the module.

    The layer object stays, with its names and tensors: what refers to it, such as a list, goes on with it. A layer is
    plain if calling it does what `torch.nn.BatchNorm1d`, ``2d`` or ``3d`` do and nothing more: it is of
    exactly that class, without hooks, and no attribute of the object replaces a method of the class.
    """
    for layer in module.modules():
        if _is_plain(layer):
            layer.__class__ = MaskedBatchNorm
    return module


def _is_plain(layer: nn.Module) -> TypeGuard[_BatchNorm]:
    return (
        type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        and is_unchanged(layer)
        and set(layer._parameters) == {"weight", "bias"}
        and set(layer._buffers) <= {"running_mean", "running_var", "num_batches_tracked"}
        and not layer._modules
    )
