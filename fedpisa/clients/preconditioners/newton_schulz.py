"""NSISA: momentum made orthogonal by Newton-Schulz steps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fedpisa.clients.base import Arrays, Gradient, MiniBatches
from fedpisa.clients.preconditioners.base import Derivatives, Preconditioner
from fedpisa.clients.preconditioners.moments import Adam
from fedpisa.typing import Decay, NonNegative, Probability


@final
@dataclass(frozen=True)
class NewtonSchulz(Preconditioner):
    r"""Follow an orthogonalised momentum: ``d = NS5(h) sqrt(max(1, rows/cols)) + pi_i + mu w``, ``Q = |d| + eps``.

    ``b = momentum b + g``, ``h = g + momentum b`` with ``g`` the gradient of ``f_i``; ``d`` takes the place of
    ``pi_i + g`` for every parameter that is a matrix, a convolution's kernel being one of ``out`` rows. `NS5` is
    `newton_schulz`. Vectors and scalars follow ``pi_i + g`` with SISA's Scheme III.

    The length of the gradient does not matter to ``NS5``. So ``d`` does not shrink near a minimum, and what the
    duals balance is the clients' ``NS5(h)``, not their gradients: on heterogeneous clients the stationary point
    is another than the optimum.

    Parameters
    ----------
    momentum
        Memory of the momentum ``b``.
    beta
        Memory of Scheme III's second moment.
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

    momentum: Probability = 0.95
    beta: Decay = 0.999
    eps: NonNegative = 1e-8

    def init(self, params_P: Tensor) -> Arrays:
        """Return ``b = 0`` and Scheme III's memory."""
        return {"momentum": torch.zeros_like(params_P), **self._scheme().init(params_P)}

    def evaluate(
        self, gradient: Gradient, v_P: Tensor, batch: MiniBatches, mu: float | Tensor
    ) -> Derivatives:
        """Ask for the shapes too."""
        return Derivatives(*gradient(v_P, batch), layout=gradient.layout)

    def direction(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Put the orthogonalised momentum in the gradient's place."""
        g_P = derivatives.gradient_P
        momentum_P = self.momentum * memory["momentum"] + g_P
        ahead_P = g_P + self.momentum * momentum_P
        parts = [
            rest + orthogonal(h.view(shape[0], -1)).reshape(-1) if len(shape) > 1 else q
            for shape, q, rest, h in _parameters(derivatives, q_P, q_P - g_P, ahead_P)
        ]
        return torch.cat(parts), {**memory, "momentum": momentum_P}

    def __call__(self, q_P: Tensor, derivatives: Derivatives, memory: Arrays) -> tuple[Tensor, Arrays]:
        """Scale a matrix by its own entries, a vector by Scheme III."""
        scheme_P, moments = self._scheme()(q_P, derivatives, memory)
        parts = [
            q.abs().clamp(max=self.eta) + self.eps if len(shape) > 1 else scheme
            for shape, q, scheme in _parameters(derivatives, q_P, scheme_P)
        ]
        return torch.cat(parts), {**moments, "momentum": memory["momentum"]}

    def _scheme(self) -> Adam:
        return Adam(eta=self.eta, beta=self.beta, eps=self.eps)


def _parameters(derivatives: Derivatives, *vectors_P: Tensor) -> Iterator[tuple[Any, ...]]:
    """Yield each parameter's shape and its share of the vectors."""
    assert derivatives.layout is not None
    shares = (torch.split(vector_P, derivatives.layout.sizes) for vector_P in vectors_P)
    return zip(derivatives.layout.shapes, *shares, strict=True)


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

    From ``X = h / ||h||_F``, ``(a, b, c) = (3.4445, -4.7750, 2.0315)``: a singular value ``s`` becomes
    ``a s + b s^3 + c s^5`` five times, which takes all but the tiniest to [0.68, 1.13]; singular vectors stay.

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
