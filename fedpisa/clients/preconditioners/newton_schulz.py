"""NSISA: momentum orthogonalised by Newton-Schulz steps."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner, parameters
from fedpisa.clients.preconditioners.moments import Adam
from fedpisa.typing import Decay, NonNegative, Probability


@final
@dataclass(frozen=True)
class NewtonSchulz(Preconditioner):
    r"""Follow an orthogonalised momentum: ``d = NS5(h) sqrt(max(1, rows/cols)) + pi_i + mu w``, ``Q = |d| + eps``.

    ``b = momentum b + g`` and ``h = g + momentum b``, with ``g`` the gradient of ``f_i``. ``NS5`` is `newton_schulz`.
    ``d`` replaces ``pi_i + g`` for each parameter that is a matrix; a convolution's kernel is a matrix with one row
    for each output channel. Vectors and scalars use ``pi_i + g`` with SISA's Scheme III.

    ``NS5`` does not depend on the length of the gradient. So ``d`` does not shrink near a minimum, and the duals
    balance the clients' ``NS5(h)`` instead of their gradients. With heterogeneous clients the stationary point is
    therefore not the optimum.

    Parameters
    ----------
    momentum
        Decay of the momentum ``b``.
    beta
        Decay of Scheme III's second moment.
    eps
        Added to ``Q``.

    Examples
    --------
    The singular values 3 and 1 of a matrix of gradients both become about 1:

    >>> from fedpisa.tasks.layout import ParamLayout
    >>> layout = ParamLayout.of([("weight", torch.zeros(2, 2))])
    >>> rule, g = NewtonSchulz(momentum=0.0), torch.tensor([3.0, 0.0, 0.0, 1.0])
    >>> derivatives = Derivatives(torch.zeros(()), g, layout=layout)
    >>> rule.direction(g, derivatives, rule.init(g))[0].round(decimals=2)
    tensor([0.7500, 0.0000, 0.0000, 1.1300])
    """

    exact: ClassVar[bool] = False
    by_parameter: ClassVar[bool] = True

    momentum: Probability = 0.95
    beta: Decay = 0.999
    eps: NonNegative = 1e-8

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``b = 0`` and Scheme III's memory."""
        return {"momentum": torch.zeros_like(params_P), **self._scheme().init(params_P)}

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Replace the gradient of each matrix by the orthogonalised momentum."""
        g_P = derivatives.gradient_P
        momentum_P = self.momentum * memory["momentum"] + g_P
        ahead_P = g_P + self.momentum * momentum_P
        parts = [
            rest + orthogonal(h.view(shape)).reshape(-1) if shape else q
            for shape, q, rest, h in parameters(derivatives, q_P, q_P - g_P, ahead_P)
        ]
        return torch.cat(parts), {**memory, "momentum": momentum_P}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Return ``|d| + eps`` for matrices, and Scheme III for vectors and scalars."""
        scheme_P, moments = self._scheme()(q_P, derivatives, memory)
        parts = [
            q.abs().clamp(max=self.eta) + self.eps if shape else scheme
            for shape, q, scheme in parameters(derivatives, q_P, scheme_P)
        ]
        return torch.cat(parts), {**moments, "momentum": memory["momentum"]}

    def _scheme(self) -> Adam:
        return Adam(eta=self.eta, beta=self.beta, eps=self.eps)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return ``NS5(h) sqrt(max(1, rows/cols))`` of a matrix ``h`` ``(rows, cols)``.

    Examples
    --------
    >>> orthogonal(torch.tensor([[0.0], [0.0]])).tolist()
    [[0.0], [0.0]]
    """
    rows, columns = matrix.shape
    return newton_schulz(matrix) * sqrt(max(1.0, rows / columns))


def newton_schulz(matrix: Tensor) -> Tensor:
    r"""Return NS5: five quintic Newton-Schulz steps ``X <- a X + (b A + c A A) X``, ``A = X X'``.

    They start at ``X = h / ||h||_F``, with ``(a, b, c) = (3.4445, -4.7750, 2.0315)``. Each step maps a singular value
    ``s`` to ``a s + b s^3 + c s^5`` and keeps the singular vectors. After five steps all but the tiniest singular
    values are in [0.68, 1.13].

    References
    ----------
    Jordan et al., Muon: an optimizer for hidden layers in neural networks, 2024.

    Examples
    --------
    >>> newton_schulz(torch.diag(torch.tensor([5.0, 1.0]))).round(decimals=2)
    tensor([[0.7200, 0.0000],
            [0.0000, 0.8000]])
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tiny = torch.finfo(matrix.dtype).tiny
    x: Tensor = matrix / torch.linalg.vector_norm(matrix).clamp(min=tiny)
    tall = x.shape[0] > x.shape[1]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
