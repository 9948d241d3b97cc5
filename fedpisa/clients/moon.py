"""The client of MOON: local SGD with a contrastive loss on features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from fedpisa.clients.base import Arrays, Gradient, LocalResult, MiniBatches, scalar_like
from fedpisa.clients.dual import kept_or
from fedpisa.clients.sgd import SGDUpdate
from fedpisa.tasks.base import Task
from fedpisa.tasks.features import FeatureLoss
from fedpisa.typing import NonNegative, Positive


@final
@dataclass(frozen=True)
class MoonUpdate(SGDUpdate):
    r"""SGD on ``f_i(v) + contrastive-mu l_con(v)``, see `SGDUpdate`; uploads the local model ``v_K``.

    ``l_con`` is the mean over the samples of ``-log(e^(s_glob / t) / (e^(s_glob / t) + e^(s_prev / t)))``, ``t`` the
    temperature, ``s_glob`` the cosine of ``z`` and ``z_glob``, and ``s_prev`` the cosine of ``z`` and ``z_prev``.
    ``z`` are a sample's features under ``v``, ``z_glob`` those under the global model ``w``, and ``z_prev`` those
    under the client's model of its previous round. No gradient flows through ``z_glob`` and ``z_prev``. The reported
    training loss is ``f_i``.

    Features are the input of the last layer that has parameters. ``z_glob`` and ``z_prev`` are computed without
    dropout. For all three, BatchNorm layers use the statistics of the mini-batch, so ``z_glob`` and ``z_prev`` neither
    read nor change buffers. The cosine with a zero vector is 0.

    State: ``previous``, the client's last model ``(P,)``, and the scalar ``seen``, 1 after the first round. In a
    client's first round the previous model is ``w``: ``z_prev = z_glob``, ``l_con = log 2`` has gradient 0, and the
    round is FedAvg's.

    Parameters
    ----------
    contrastive_mu
        Coefficient of the contrastive loss.
    temperature
        Divisor of the cosines; a smaller one gives a sharper loss.

    References
    ----------
    Li, He, Song, Model-Contrastive Federated Learning, CVPR 2021, arXiv 2103.16257.

    Examples
    --------
    Features parallel to ``z_glob`` and opposite to ``z_prev``: ``log(1 + e^((-1 - 1) / 0.5))``.

    >>> z, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[-2.0, -4.0]])
    >>> MoonUpdate().contrast(z, 3 * z, other)
    tensor([0.0181])
    >>> MoonUpdate().contrast(z, other, other)
    tensor([0.6931])
    """

    contrastive_mu: NonNegative = 1.0
    temperature: Positive = 0.5

    def check(self, task: Task, x: Tensor) -> None:
        """Raise `ValueError` if the module has no features."""
        params_P, buffers_Q = task.initial_params(), task.initial_buffers()
        task.features(params_P, buffers_Q, x, x.new_ones(len(x)))

    def init(self, params_P: Tensor) -> Arrays:
        """Return the state before the first round."""
        return {"previous": torch.zeros_like(params_P), "seen": scalar_like(params_P)}

    def contrast(self, z_BF: Tensor, glob_BF: Tensor, prev_BF: Tensor) -> Tensor:
        """Return the samples' contrastive losses ``(B,)`` from their features ``(B, F)``."""
        gap_B = cosine(z_BF, glob_BF) - cosine(z_BF, prev_BF)
        return -F.logsigmoid(gap_B / self.temperature)

    def stochastic_gradient(
        self, gradient: Gradient, down: Arrays, state: Arrays, v_P: Tensor, batch: MiniBatches
    ) -> Tensor:
        """Return the gradient of the loss and the contrastive loss."""
        if not self.contrastive_mu:
            return super().stochastic_gradient(gradient, down, state, v_P, batch)
        w_P = down["params"]
        anchors = (w_P, kept_or(state, "previous", w_P))
        extra = FeatureLoss(anchors, lambda *z: self.contrastive_mu * self.contrast(*z))
        return gradient(v_P, batch, extra)[1]

    def finish(self, down: Arrays, state: Arrays, work: Arrays) -> LocalResult:
        """Upload and keep the local model."""
        v_P = down["params"] + work["drift"]
        return LocalResult({"params": v_P}, {"previous": v_P, "seen": scalar_like(v_P, 1.0)}, {})


def cosine(a_BF: Tensor, b_BF: Tensor) -> Tensor:
    """Return ``<a, b> / (||a|| ||b||)`` ``(B,)``, or 0 with a finite gradient where a vector is zero.

    Examples
    --------
    >>> cosine(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([0.6000, 0.0000])
    """
    return (_unit(a_BF) * _unit(b_BF)).sum(-1)


def _unit(z_BF: Tensor) -> Tensor:
    squared_B1 = (z_BF * z_BF).sum(-1, keepdim=True)
    return z_BF / torch.where(squared_B1 > 0, squared_B1, 1).sqrt()
