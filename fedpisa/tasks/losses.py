"""Losses of samples, and their derivatives in closed form, which need no autograd graph.

Shapes: ``S`` clients, ``B`` samples, ``F`` outputs of a sample.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Literal["cross-entropy", "binary", "half-squared-error"]


def sample_losses(loss: Loss, outputs: Tensor, y_B: Tensor) -> Tensor:
    r"""Return each sample's loss ``(B,)`` from the outputs ``(B, F)``.

    ``cross-entropy``: ``-log softmax(o)_y``; ``binary``: ``log(1 + exp(-(2 y - 1) o))`` of one logit;
    ``half-squared-error``: ``(o - y)^2 / 2``.

    Examples
    --------
    >>> sample_losses("half-squared-error", torch.tensor([[3.0]]), torch.tensor([1.0]))
    tensor([2.])
    """
    if loss == "cross-entropy":
        return F.cross_entropy(outputs, y_B, reduction="none")
    outputs = outputs.reshape(y_B.shape)
    if loss == "binary":
        return F.binary_cross_entropy_with_logits(outputs, y_B.to(outputs.dtype), reduction="none")
    return 0.5 * (outputs - y_B) ** 2


def losses_and_gradients(loss: Loss, outputs_SFB: Tensor, y_SB: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return `sample_losses` ``(S, B)`` and their derivatives with respect to the outputs ``(S, F, B)``.

    ``cross-entropy``: ``softmax(o) - e_y``; ``binary``: ``sigmoid(o) - y``; ``half-squared-error``: ``o - y``.

    Examples
    --------
    >>> losses_and_gradients("half-squared-error", torch.tensor([[[3.0, 1.0]]]), torch.tensor([[1.0, 1.0]]))
    (tensor([[2., 0.]]), tensor([[[2., 0.]]]))
    """
    if loss == "cross-entropy":
        logs_SFB = torch.log_softmax(outputs_SFB, 1)
        y_S1B = y_SB[:, None]
        losses_SB = logs_SFB.gather(1, y_S1B)[:, 0].neg()
        return losses_SB, logs_SFB.exp_().scatter_add_(1, y_S1B, losses_SB.new_tensor(-1.0).expand_as(y_S1B))
    outputs_SB = outputs_SFB.reshape(y_SB.shape)
    losses_SB = sample_losses(loss, outputs_SB.flatten(), y_SB.flatten()).view(y_SB.shape)
    values_SB = outputs_SB.sigmoid() if loss == "binary" else outputs_SB
    return losses_SB, (values_SB - y_SB)[:, None]
