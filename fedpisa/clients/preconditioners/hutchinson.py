"""Second-order information from Hessian-vector products."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from fedpisa.clients.base import Gradient, MiniBatches
from fedpisa.clients.preconditioners.base import CurvatureAverage, Derivatives
from fedpisa.rng import GOLDEN, splitmix
from fedpisa.typing import PositiveInt


@final
@dataclass(frozen=True)
class Hutchinson(CurvatureAverage):
    r"""Diagonal of the Hessian: ``h = beta h + (1 - beta) mean_r v_r (H v_r)``, ``Q = clip(h, 0, eta)``.

    ``H`` is the Hessian of ``F_i`` on the step's mini-batches. ``v_r`` are vectors of random signs, which depend on the
    seed, the client, the round and the step. The estimate is unbiased, and exact if ``H`` is diagonal. Each probe costs
    about two gradients.

    Parameters
    ----------
    probes
        Number of vectors ``v_r``.

    References
    ----------
    Bekas, Kokiopoulou, Saad, An estimator for the diagonal of a matrix, 2007.

    Examples
    --------
    >>> hutchinson = Hutchinson(beta=0.75)
    >>> q = torch.ones(2)
    >>> derivatives = Derivatives(torch.zeros(()), q, curvature_P=torch.tensor([4.0, -4.0]))
    >>> hutchinson(q, derivatives, hutchinson.init(q))[0].tolist()
    [1.0, 0.0]
    """

    probes: PositiveInt = 1

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Estimate the Hessian's diagonal beside loss and gradient."""
        signs_RP = rademacher(batch.key, self.probes, len(v_P)).to(v_P.dtype)
        loss, g_P, products_RP = gradient.with_hessian(v_P, batch, signs_RP)
        return Derivatives(loss, g_P, (signs_RP * products_RP).mean(0) + mu)


def rademacher(key: Tensor, rows: int, columns: int) -> Tensor:
    """Return signs ``(R, P)``, int64, that depend on ``key`` ``()`` alone: the top bits of SplitMix64's output.

    Examples
    --------
    >>> rademacher(torch.tensor(7), 2, 4)
    tensor([[ 1,  1, -1, -1],
            [ 1,  1,  1,  1]])
    """
    state = key + GOLDEN * torch.arange(rows * columns, device=key.device).view(rows, columns)
    return 1 - 2 * (splitmix(state) < 0).to(torch.int64)
